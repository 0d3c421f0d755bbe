// The flat table that a sweep walks: pointers, sizes, and which rule belongs to which tensor.
#pragma once

#include <cstdint>

#include "engine/format.h"

namespace fusedopt {

// What an operand of a step is. The parameter and the states are read and written; the gradient is
// only read, unless it is unscaled.
enum Role : int { kParam, kGrad, kFirstState };

inline constexpr int kMaxStates = 3;
inline constexpr int kMaxOperands = kFirstState + kMaxStates + 1;  // the last: a remainder
inline constexpr int kMaxOptions = 8;                              // numbers of a parameter group

// How to walk operands that do not all share one dense layout. Elements are numbered in row-major
// order over `sizes`; operand k of element (i0, i1, ...) is at sum_d i_d * strides[k * ndim + d],
// in elements.
struct Layout {
  const int64_t* sizes;
  const int64_t* strides;
  int ndim;
};

struct TensorEntry {
  // By role. After the last state: the parameter's remainder, if its format is kSplitFloat32.
  void* operands[kMaxOperands];
  int64_t start;        // in the work list; see `append`
  int64_t numel;        // never 0
  int32_t rule = 0;     // index into the table's rules
  int32_t layout = -1;  // index into the table's layouts; -1: all operands are dense and alike
  bool maximize = false;
  // For noise: the parameter's position, and the number of the entry's first element in the whole
  // parameter.
  uint32_t position = 0;
  int64_t origin = 0;

  // Leaves alone what is set for every tensor, because g++ 12 zeroes so many bytes with an
  // instruction that takes longer than the rest of filling an entry.
  TensorEntry() {}
};

struct Table {
  const TensorEntry* tensors;
  int64_t count;
  const void* rules;  // one instance of the rule per (group, step value)
  const Layout* layouts;
  bool scaled;  // gradients are divided by grad_scale, and stored so
  double grad_scale;
  const Format* formats = nullptr;  // of the operands; null: all have the parameter's dtype
  const uint64_t* keys = nullptr;   // of noise, by rule; null: no format needs any
  double clip = 1;  // rules see gradients multiplied by this; memory keeps them as they are
};

// Work is shared out in multiples of so many elements of a tensor: as many as a vector register
// holds of the smallest format, whose blocks (cpu/blocks.inl) then have no rest where work was cut.
// A format may keep that many together; noise is drawn for two.
inline constexpr int64_t kGranularity = 32;

constexpr int64_t round_to_granularity(int64_t elements) {
  return (elements + kGranularity - 1) / kGranularity * kGranularity;
}

// Puts an entry of which all else is set at the end of a work list, which is so many elements long.
inline void append(TensorEntry& entry, int64_t& elements) {
  entry.start = elements;
  elements += round_to_granularity(entry.numel);
}

// What a rule sees of a gradient is its product with this: negative, to maximize.
template <typename Compute>
Compute grad_factor(const Table& table, const TensorEntry& tensor) {
  const auto clip = static_cast<Compute>(table.clip);
  return tensor.maximize ? -clip : clip;
}

inline bool is_split(const Table& table) {
  return table.formats != nullptr && table.formats[kParam] == Format::kSplitFloat32;
}

// The tensor that holds element `index` of the whole work list.
inline int64_t find_tensor(const Table& table, int64_t index) {
  int64_t low = 0;
  int64_t high = table.count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (table.tensors[middle].start <= index ? low : high) = middle;
  }
  return low;
}

}  // namespace fusedopt
