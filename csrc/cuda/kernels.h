// The CUDA kernels, one per rule and choice of states. Each is defined in its optimizer's thin
// file.
#pragma once

#include "cuda/kernel.h"

namespace fusedopt::cuda {

extern const Kernel kSgd[2];  // [momentum]
extern const Kernel kAdagrad;
extern const Kernel kRmsprop[2][2];  // [momentum][centered]
extern const Kernel kAdadelta;
extern const Kernel kAdam[2];  // [amsgrad]; AdamW too
extern const Kernel kAdamax;
extern const Kernel kRadam;
extern const Kernel kNadam;
extern const Kernel kAsgd;
extern const Kernel kRprop;
extern const Kernel kLion;

}  // namespace fusedopt::cuda
