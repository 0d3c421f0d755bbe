// CPU kernels of RAdam.
#include "rules/radam.h"

#include "cpu/kernels.h"
#include "cpu/sweep.h"

namespace fusedopt::cpu {

const Kernel kRadam = make_kernel<Radam<float>, Radam<double>>();

}  // namespace fusedopt::cpu
