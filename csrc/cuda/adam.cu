// CUDA kernels of Adam and AdamW.
#include "cuda/kernels.cuh"
#include "cuda/kernels.h"
#include "rules/adam.h"

namespace fusedopt::cuda {

const Kernel kAdam[2] = {
    make_kernel<Adam<float, false>, Adam<double, false>>("Adam"),
    make_kernel<Adam<float, true>, Adam<double, true>>("Adam with amsgrad"),
};

}  // namespace fusedopt::cuda
