// CPU kernels of Adam and AdamW.
#include "rules/adam.h"

#include "cpu/kernels.h"
#include "cpu/sweep.h"

namespace fusedopt::cpu {

const Kernel kAdam[2] = {
    make_kernel<Adam<float, false>, Adam<double, false>>(),
    make_kernel<Adam<float, true>, Adam<double, true>>(),
};

}  // namespace fusedopt::cpu
