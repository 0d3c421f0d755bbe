// CUDA kernels of RMSprop.
#include "cuda/kernels.cuh"
#include "cuda/kernels.h"
#include "rules/rmsprop.h"

namespace fusedopt::cuda {

const Kernel kRmsprop[2][2] = {
    {make_kernel<Rmsprop<float, false, false>, Rmsprop<double, false, false>>("RMSprop"),
     make_kernel<Rmsprop<float, false, true>, Rmsprop<double, false, true>>("RMSprop, centered")},
    {make_kernel<Rmsprop<float, true, false>, Rmsprop<double, true, false>>(
         "RMSprop with momentum"),
     make_kernel<Rmsprop<float, true, true>, Rmsprop<double, true, true>>(
         "RMSprop with momentum, centered")},
};

}  // namespace fusedopt::cuda
