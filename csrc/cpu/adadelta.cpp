// CPU kernels of Adadelta.
#include "rules/adadelta.h"

#include "cpu/kernels.h"
#include "cpu/sweep.h"

namespace fusedopt::cpu {

const Kernel kAdadelta = make_kernel<Adadelta<float>, Adadelta<double>>();

}  // namespace fusedopt::cpu
