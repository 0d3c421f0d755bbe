// CUDA kernels of Adadelta.
#include "cuda/kernels.h"
#include "cuda/sweep.cuh"
#include "rules/adadelta.h"

namespace fusedopt::cuda {

const Kernel kAdadelta = make_kernel<Adadelta<float>, Adadelta<double>>("Adadelta");

}  // namespace fusedopt::cuda
