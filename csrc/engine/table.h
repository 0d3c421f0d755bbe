// The flat table that a sweep walks: pointers, sizes, and which rule belongs to which tensor.
#pragma once

#include <cstdint>

#include "engine/dtype.h"

namespace fusedopt {

// What an operand of a step is. The parameter and the states are read and written; the gradient is
// only read, unless it is unscaled.
enum Role : int { kParam, kGrad, kFirstState };

inline constexpr int kMaxStates = 3;
inline constexpr int kMaxOperands = kFirstState + kMaxStates;
inline constexpr int kMaxOptions = 8;  // numbers of a parameter group

// How to walk operands that do not all share one dense layout. Elements are numbered in row-major
// order over `sizes`; operand k of element (i0, i1, ...) is at sum_d i_d * strides[k * ndim + d],
// in elements.
struct Layout {
  const int64_t* sizes;
  const int64_t* strides;
  int ndim;
};

struct TensorEntry {
  void* operands[kMaxOperands];  // by role
  int64_t start;                 // elements in the tensors before this one
  int64_t numel;                 // never 0
  int32_t rule;                  // index into the table's rules
  int32_t layout;  // index into the table's layouts; -1: all operands are dense and alike
  bool maximize;
};

struct Table {
  const TensorEntry* tensors;
  int64_t count;
  const void* rules;  // one instance of the rule per (group, step value)
  const Layout* layouts;
  bool scaled;  // gradients are divided by grad_scale, and stored so
  double grad_scale;
  const Dtype* formats = nullptr;  // of the operands; null: all have the parameter's dtype
};

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
