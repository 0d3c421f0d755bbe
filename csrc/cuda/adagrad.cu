// CUDA kernels of Adagrad.
#include "cuda/kernels.cuh"
#include "cuda/kernels.h"
#include "rules/adagrad.h"

namespace fusedopt::cuda {

const Kernel kAdagrad = make_kernel<Adagrad<float>, Adagrad<double>>("Adagrad");

}  // namespace fusedopt::cuda
