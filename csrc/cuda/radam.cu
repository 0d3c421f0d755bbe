// CUDA kernels of RAdam.
#include "cuda/kernels.h"
#include "cuda/sweep.cuh"
#include "rules/radam.h"

namespace fusedopt::cuda {

const Kernel kRadam = make_kernel<Radam<float>, Radam<double>>("RAdam");

}  // namespace fusedopt::cuda
