// CPU kernels of Rprop.
#include "rules/rprop.h"

#include "cpu/kernels.h"
#include "cpu/sweep.h"

namespace fusedopt::cpu {

const Kernel kRprop = make_kernel<Rprop<float>, Rprop<double>>();

}  // namespace fusedopt::cpu
