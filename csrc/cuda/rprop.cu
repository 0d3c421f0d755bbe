// CUDA kernels of Rprop.
#include "cuda/kernels.h"
#include "cuda/sweep.cuh"
#include "rules/rprop.h"

namespace fusedopt::cuda {

const Kernel kRprop = make_kernel<Rprop<float>, Rprop<double>>("Rprop");

}  // namespace fusedopt::cuda
