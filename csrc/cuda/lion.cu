// CUDA kernels of Lion.
#include "cuda/kernels.cuh"
#include "cuda/kernels.h"
#include "rules/lion.h"

namespace fusedopt::cuda {

const Kernel kLion = make_kernel<Lion<float>, Lion<double>>("Lion");

}  // namespace fusedopt::cuda
