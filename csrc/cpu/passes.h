// The CPU kernels of what is no optimizer: one pass over gradients or averages.
#pragma once

#include "cpu/kernel.h"

namespace fusedopt::cpu {

extern const Kernel kAverage;
extern const Kernel kClamp;
extern const Kernel kMean;
extern const Kernel kScale;
extern const Kernel kWeighted;

}  // namespace fusedopt::cpu
