// How norms are summed, so that they have one value on every device: blocks of elements in lanes,
// and blocks in columns.
#pragma once

#include <cstdint>

#include "engine/dtype.h"
#include "engine/host_device.h"

namespace fusedopt {

// What is computed of elements, and of parts of them.
enum class Norm : int { kSquares, kMagnitudes, kLargest, kSmallest };
inline constexpr int kNorms = 4;

// Elements in a block. A tensor's last one is shorter.
inline constexpr int64_t kNormBlock = 4096;
// Element i of a block goes to lane i % kNormLanes, and block i of all to column i % kNormColumns.
// In both, the upper half is added to the lower one until one number is left.
inline constexpr int kNormLanes = 16;
inline constexpr int kNormColumns = 256;

struct NormEntry {
  const char* at;  // elements side by side
  int64_t start;   // elements in the tensors before this one
  int64_t numel;   // never 0
  int64_t blocks;  // in the tensors before this one
  Dtype dtype;
};

inline int64_t norm_blocks(int64_t numel) { return (numel + kNormBlock - 1) / kNormBlock; }

// The norm of no elements at all.
FUSEDOPT_HD constexpr double norm_of_none(Norm kind) {
  return kind == Norm::kSmallest ? __builtin_inf() : 0.0;
}

// The norm of two parts together. A NaN wins.
FUSEDOPT_HD double add_norms(Norm kind, double a, double b) {
  switch (kind) {
    case Norm::kLargest:
      return b > a || b != b ? b : a;
    case Norm::kSmallest:
      return b < a || b != b ? b : a;
    default:
      return a + b;
  }
}

// The norm of one element, before any root.
FUSEDOPT_HD double norm_of_one(Norm kind, double x) {
  return kind == Norm::kSquares ? x * x : absolute(x);
}

// The norm of `count` parts together, which are overwritten; `count` is a power of two.
FUSEDOPT_HD double reduce_norms(Norm kind, double* parts, int count) {
  for (int width = count / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) parts[i] = add_norms(kind, parts[i], parts[i + width]);
  }
  return parts[0];
}

}  // namespace fusedopt
