// CPU kernels of Adamax.
#include "rules/adamax.h"

#include "cpu/kernels.h"
#include "cpu/sweep.h"

namespace fusedopt::cpu {

const Kernel kAdamax = make_kernel<Adamax<float>, Adamax<double>>();

}  // namespace fusedopt::cpu
