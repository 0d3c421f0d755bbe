// CPU kernels of NAdam.
#include "rules/nadam.h"

#include "cpu/kernels.h"
#include "cpu/sweep.h"

namespace fusedopt::cpu {

const Kernel kNadam = make_kernel<Nadam<float>, Nadam<double>>();

}  // namespace fusedopt::cpu
