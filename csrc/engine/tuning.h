// Numbers that were chosen by measurement, and the measurements.
#pragma once

#include <cstdint>

namespace fusedopt {

// Elements of the tile in which the CPU converts, gathers or rescales: five of them stay in the L1
// cache.
inline constexpr int kTile = 128;

// Fewer elements than this run on the calling thread.
inline constexpr int64_t kParallelElements = 32768;

// From this many elements on, the interpreter lock is released during the sweep. Holding the
// tensors' storages meanwhile costs some 10 ns for each.
inline constexpr int64_t kReleaseElements = 1 << 20;

inline constexpr int kCheckAhead = 2;
inline constexpr int kFillAhead = 4;
inline constexpr int kSweepAhead = 2;
inline constexpr int64_t kPrefetchBytes = 512;

}  // namespace fusedopt
