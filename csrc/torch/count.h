// Step counts in the memory of the host: how they are stored, and counting them up.
#pragma once

#include <c10/core/ScalarType.h>

#include "torch/reading.h"

namespace fusedopt {

// Can torch add 1 to a number of this type?
bool is_countable(c10::ScalarType type);

// What the count of a slot's steps will be, in its own type, as torch adds 1 to it.
double next_count(const Work& work);

// Counts up steps and the versions of all tensors that the sweep is about to write. Can't fail.
void count(const Reading& reading);

}  // namespace fusedopt
