// The floor of a step: what moving its bytes costs where the arithmetic costs nothing.
#pragma once

#include <cstdint>

#include "cpu/kernel.h"
#include "engine/api.h"

namespace fusedopt::cpu {

inline constexpr int kMaxStreams = 4;

// Arrays of `words` 32-bit words: one that is read, as a gradient, and some that are read and
// written, as a parameter and its states.
struct Streams {
  const uint32_t* read;
  uint32_t* updated[kMaxStreams];
  int count;  // of `updated`, up to kMaxStreams
  int64_t words;
};

// Passes over all arrays once, side by side, as a sweep does.
FUSEDOPT_API void stream(const Streams& streams, Parallel parallel);

}  // namespace fusedopt::cpu
