// CPU kernels of Adagrad.
#include "rules/adagrad.h"

#include "cpu/kernels.h"
#include "cpu/sweep.h"

namespace fusedopt::cpu {

const Kernel kAdagrad = make_kernel<Adagrad<float>, Adagrad<double>>();

}  // namespace fusedopt::cpu
