// CPU kernels of ASGD.
#include "rules/asgd.h"

#include "cpu/kernels.h"
#include "cpu/sweep.h"

namespace fusedopt::cpu {

const Kernel kAsgd = make_kernel<Asgd<float>, Asgd<double>>();

}  // namespace fusedopt::cpu
