// How an operand is stored: in one of the dtypes, or as bfloat16 in a way of our own.
#pragma once

#include <cstdint>

#include "engine/dtype.h"
#include "engine/host_device.h"
#include "engine/noise.h"

namespace fusedopt {

// The first ones are the dtypes, in their order.
enum class Format : uint8_t {
  kFloat32,
  kFloat64,
  kBFloat16,
  kFloat16,
  kNoisyBFloat16,  // rounded by noise
  kSplitFloat32    // the upper half in bfloat16, the lower half in a tensor of its own
};
inline constexpr int kFormats = 6;

constexpr Format format_of(Dtype dtype) { return static_cast<Format>(dtype); }

// Bytes of an element; of a split number, the bytes of the upper half.
FUSEDOPT_HD constexpr int item_bytes(Format format) {
  return format == Format::kFloat64 ? 8 : format == Format::kFloat32 ? 4 : 2;
}

inline constexpr int64_t kRemainderBytes = 2;

// A float32 in two halves: a bfloat16, rounded to nearest, half away from zero, and what is to be
// added to the bfloat16's bits. (Rounding to nearest even can't be undone: a tie doesn't tell on
// which side the number was.)
struct Halves {
  uint16_t upper;
  int16_t remainder;
};

FUSEDOPT_HD Halves split(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0, 0};  // a NaN might round to 0
  return {static_cast<uint16_t>((bits + 0x8000u) >> 16), static_cast<int16_t>(bits & 0xffffu)};
}

// The float32 that two halves make. The halves may not belong together, because somebody has
// written another bfloat16: where they would make a NaN of a bfloat16 that is none, the result is
// the bfloat16 itself.
FUSEDOPT_HD float join(uint16_t upper, int16_t remainder) {
  const uint32_t alone = static_cast<uint32_t>(upper) << 16;
  const uint32_t bits = alone + static_cast<uint32_t>(static_cast<int32_t>(remainder));
  return float_of((bits & 0x7fffffffu) > 0x7f800000u ? alone : bits);
}

}  // namespace fusedopt
