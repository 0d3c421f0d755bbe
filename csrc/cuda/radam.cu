// CUDA kernels of RAdam.
#include "cuda/kernels.cuh"
#include "cuda/kernels.h"
#include "rules/radam.h"

namespace fusedopt::cuda {

const Kernel kRadam = make_kernel<Radam<float>, Radam<double>>("RAdam");

}  // namespace fusedopt::cuda
