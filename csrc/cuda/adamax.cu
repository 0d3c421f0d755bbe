// CUDA kernels of Adamax.
#include "cuda/kernels.cuh"
#include "cuda/kernels.h"
#include "rules/adamax.h"

namespace fusedopt::cuda {

const Kernel kAdamax = make_kernel<Adamax<float>, Adamax<double>>("Adamax");

}  // namespace fusedopt::cuda
