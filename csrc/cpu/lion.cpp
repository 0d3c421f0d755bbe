// CPU kernels of Lion.
#include "rules/lion.h"

#include "cpu/kernels.h"
#include "cpu/sweep.h"

namespace fusedopt::cpu {

const Kernel kLion = make_kernel<Lion<float>, Lion<double>>();

}  // namespace fusedopt::cpu
