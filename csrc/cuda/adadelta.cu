// CUDA kernels of Adadelta.
#include "cuda/kernels.cuh"
#include "cuda/kernels.h"
#include "rules/adadelta.h"

namespace fusedopt::cuda {

const Kernel kAdadelta = make_kernel<Adadelta<float>, Adadelta<double>>("Adadelta");

}  // namespace fusedopt::cuda
