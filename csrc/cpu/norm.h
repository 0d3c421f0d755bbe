// Norms of many tensors at once, on the CPU.
#pragma once

#include <cstdint>

#include "cpu/kernel.h"
#include "engine/api.h"
#include "engine/norm.h"

namespace fusedopt::cpu {

// Of all elements, those in float64 multiplied by `scale`: the sum of their squares or magnitudes,
// or the largest or smallest magnitude. `results` has room for a number per block: what they are
// then.
FUSEDOPT_API double norm(Norm kind, double scale, const NormEntry* entries, int64_t count,
                         double* results, Parallel parallel);

}  // namespace fusedopt::cpu
