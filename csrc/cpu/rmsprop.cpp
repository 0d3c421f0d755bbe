// CPU kernels of RMSprop.
#include "rules/rmsprop.h"

#include "cpu/kernels.h"
#include "cpu/sweep.h"

namespace fusedopt::cpu {

const Kernel kRmsprop[2][2] = {
    {make_kernel<Rmsprop<float, false, false>, Rmsprop<double, false, false>>(),
     make_kernel<Rmsprop<float, false, true>, Rmsprop<double, false, true>>()},
    {make_kernel<Rmsprop<float, true, false>, Rmsprop<double, true, false>>(),
     make_kernel<Rmsprop<float, true, true>, Rmsprop<double, true, true>>()},
};

}  // namespace fusedopt::cpu
