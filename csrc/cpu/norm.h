// Norms of many tensors at once, on the CPU.
#pragma once

#include <cstdint>

#include "cpu/kernel.h"
#include "engine/api.h"
#include "engine/norm.h"

namespace fusedopt::cpu {

// The sum of all elements' squares or magnitudes, or their largest or smallest magnitude, of
// elements multiplied by `scale`, which is another number than 1 only for squares. `results` gets
// the same for each block.
FUSEDOPT_API double norm(Norm kind, double scale, const NormEntry* entries, int64_t count,
                         double* results, Parallel parallel);

}  // namespace fusedopt::cpu
