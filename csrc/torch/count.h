// Step counts and other single numbers of states in the memory of the host: how the numbers are
// stored, and counting up.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstring>

#include "torch/reading.h"

namespace fusedopt {

// Can torch add 1 to a number of this type?
bool is_countable(c10::ScalarType type);

// next_step of a count that isn't float32.
double next_unusual_step(Scalar step);

// What a slot's step count will be; torch adds 1 in the count's own type. 0 if a device counts.
// Without a count: 0 in the first step, and then 1.
FUSEDOPT_INLINE double next_step(const Work& work, const Group& group, size_t scalars) {
  if (scalars == 0) return work.first ? 0 : 1;
  if (work.fresh) return 1;
  const Scalar step = scalar_of(work, group, 0);
  if (step.on_device) return 0;
  const void* at = step.address;
  if (step.type == c10::ScalarType::Float) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value + 1.0f;
  }
  return next_unusual_step(step);
}

// The count that a step's noise depends on: of steps, or of roundings. 0 if a device counts.
inline double next_rounding(const Work& work, const Group& group) {
  return scalar_of(work, group, 0).address == nullptr ? 1 : next_step(work, group, 1);
}

// The step, and those of the state's other numbers that the host has.
Counts read_counts(const Optimizer& optimizer, const Group& group, const Work& work, double step);

// Has a state the same single numbers, beside the step count, as another slot of the group, whose
// numbers are `counts`?
bool has_numbers(const Work& work, const Work& other, const Group& group, const Counts& counts);

// Computes what the single numbers beside the step count will be.
void advance(const Optimizer& optimizer, const Group& group, const Work& work, Counts& counts);

// Writes the single numbers, and counts up the versions of all tensors that the sweep is about to
// write. Can't fail. `counts` are of the slots that are ready, if there is more to count than
// steps.
void count(const Reading& reading, const std::vector<Counts>& counts);

}  // namespace fusedopt
