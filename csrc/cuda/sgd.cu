// CUDA kernels of SGD.
#include "cuda/kernels.cuh"
#include "cuda/kernels.h"
#include "rules/sgd.h"

namespace fusedopt::cuda {

const Kernel kSgd[2] = {
    make_kernel<Sgd<float, false>, Sgd<double, false>>("SGD"),
    make_kernel<Sgd<float, true>, Sgd<double, true>>("SGD with momentum"),
};

}  // namespace fusedopt::cuda
