// CUDA kernels of ASGD.
#include "cuda/kernels.cuh"
#include "cuda/kernels.h"
#include "rules/asgd.h"

namespace fusedopt::cuda {

const Kernel kAsgd = make_kernel<Asgd<float>, Asgd<double>>("ASGD");

}  // namespace fusedopt::cuda
