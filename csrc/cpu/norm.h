// Norms of many tensors at once. A norm has one value: each block of a tensor is summed in double,
// in lanes that are the same on every instruction set, and the blocks' sums are added in the list's
// order.
#pragma once

#include <cstdint>

#include "cpu/kernel.h"
#include "engine/dtype.h"

namespace fusedopt::cpu {

// What is computed of a block's elements, and of blocks.
enum class Norm : int { kSquares, kMagnitudes, kLargest, kSmallest };
inline constexpr int kNorms = 4;

// Elements in a block. A tensor's last one is shorter.
inline constexpr int64_t kNormBlock = 4096;

struct NormEntry {
  const char* at;  // elements side by side
  int64_t start;   // elements in the tensors before this one
  int64_t numel;   // never 0
  int64_t blocks;  // in the tensors before this one
  Dtype dtype;
};

inline int64_t norm_blocks(int64_t numel) { return (numel + kNormBlock - 1) / kNormBlock; }

// Of all elements, those in float64 multiplied by `scale`: the sum of their squares or magnitudes,
// or the largest or smallest magnitude. A NaN wins. `results` has room for a number per block.
double norm(Norm kind, double scale, const NormEntry* entries, int64_t count, double* results,
            Parallel parallel);

}  // namespace fusedopt::cpu
