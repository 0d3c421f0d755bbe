// Step counts and other single numbers of states in the memory of the host: how they are stored,
// and counting them up.
#pragma once

#include <c10/core/ScalarType.h>

#include "torch/reading.h"

namespace fusedopt {

// Can torch add 1 to a number of this type?
bool is_countable(c10::ScalarType type);

// The single numbers of a slot's state, as far as the host has them: the step's count as torch adds
// 1 to it in its own type, the others as they are.
Counts read_counts(const Optimizer& optimizer, const Group& group, const Work& work);

// What the others will be.
void advance(const Optimizer& optimizer, const Group& group, const Work& work, Counts& counts);

// Writes these numbers, and counts up the versions of all tensors that the sweep is about to write.
// Can't fail. `counts` are of the slots that are ready, if there is more to count than steps.
void count(const Reading& reading, const std::vector<Counts>& counts);

}  // namespace fusedopt
