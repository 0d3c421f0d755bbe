// CUDA kernels of Lion.
#include "cuda/kernels.h"
#include "cuda/sweep.cuh"
#include "rules/lion.h"

namespace fusedopt::cuda {

const Kernel kLion = make_kernel<Lion<float>, Lion<double>>("Lion");

}  // namespace fusedopt::cuda
