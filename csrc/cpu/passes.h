// The CPU kernels of what is no optimizer: one pass over gradients or averages.
#pragma once

#include "cpu/kernel.h"
#include "engine/api.h"

namespace fusedopt::cpu {

FUSEDOPT_API extern const Kernel kAverage;
FUSEDOPT_API extern const Kernel kClamp;
FUSEDOPT_API extern const Kernel kMean;
FUSEDOPT_API extern const Kernel kScale;
FUSEDOPT_API extern const Kernel kWeighted;

}  // namespace fusedopt::cpu
