// CPU kernels of SGD.
#include "rules/sgd.h"

#include "cpu/kernels.h"
#include "cpu/sweep.h"

namespace fusedopt::cpu {

const Kernel kSgd[2] = {
    make_kernel<Sgd<float, false>, Sgd<double, false>>(),
    make_kernel<Sgd<float, true>, Sgd<double, true>>(),
};

}  // namespace fusedopt::cpu
