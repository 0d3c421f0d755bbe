// The CPU kernels, one per rule and choice of states. Each is defined in its optimizer's thin file.
#pragma once

#include "cpu/kernel.h"
#include "engine/api.h"

namespace fusedopt::cpu {

FUSEDOPT_API extern const Kernel kSgd[2];  // [momentum]
FUSEDOPT_API extern const Kernel kAdagrad;
FUSEDOPT_API extern const Kernel kRmsprop[2][2];  // [momentum][centered]
FUSEDOPT_API extern const Kernel kAdadelta;
FUSEDOPT_API extern const Kernel kAdam[2];  // [amsgrad]; AdamW too
FUSEDOPT_API extern const Kernel kAdamax;
FUSEDOPT_API extern const Kernel kRadam;
FUSEDOPT_API extern const Kernel kNadam;
FUSEDOPT_API extern const Kernel kAsgd;
FUSEDOPT_API extern const Kernel kRprop;
FUSEDOPT_API extern const Kernel kLion;

}  // namespace fusedopt::cpu
