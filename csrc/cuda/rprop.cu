// CUDA kernels of Rprop.
#include "cuda/kernels.cuh"
#include "cuda/kernels.h"
#include "rules/rprop.h"

namespace fusedopt::cuda {

const Kernel kRprop = make_kernel<Rprop<float>, Rprop<double>>("Rprop");

}  // namespace fusedopt::cuda
