// CUDA kernels of NAdam.
#include "cuda/kernels.cuh"
#include "cuda/kernels.h"
#include "rules/nadam.h"

namespace fusedopt::cuda {

const Kernel kNadam = make_kernel<Nadam<float>, Nadam<double>>("NAdam");

}  // namespace fusedopt::cuda
