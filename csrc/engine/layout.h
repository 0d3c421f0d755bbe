// Turns sizes and strides of several operands into the smallest loop nest that walks them together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "engine/table.h"
#include "engine/tuning.h"

namespace fusedopt {

// The storage of a Layout: sizes, then each operand's strides.
struct LayoutBuffer {
  std::vector<int64_t> numbers;
  int ndim = 0;

  Layout view() const { return {numbers.data(), numbers.data() + ndim, ndim}; }
};

// Can two indices of a tensor be the same address? Nested strides prove that they can't; `false`
// means "not proven", as for a window that overlaps itself.
inline bool is_injective(int ndim, const int64_t* sizes, const int64_t* strides) {
  std::vector<int> order;
  for (int d = 0; d < ndim; ++d) {
    if (sizes[d] != 1) order.push_back(d);
  }
  std::sort(order.begin(), order.end(), [&](int a, int b) { return strides[a] < strides[b]; });
  int64_t extent = 0;  // the largest offset that the inner dimensions reach
  for (const int d : order) {
    if (strides[d] <= extent) return false;
    extent += (sizes[d] - 1) * strides[d];
  }
  return true;
}

// An operand may be walked element by element along another dimension than the last. That dimension
// is put before the last one, so that a block of both is read and written along each.
inline void put_block_last(std::vector<int>& kept, std::vector<int64_t>& sizes,
                           const std::vector<const int64_t*>& strides) {
  for (const int64_t* s : strides) {
    if (kept.empty() || s[kept.back()] == 1 || s[kept.back()] == 0) continue;
    const auto along = std::find_if(kept.begin(), kept.end(), [&](int d) { return s[d] == 1; });
    if (along == kept.end()) continue;
    const size_t from = along - kept.begin();
    size_t to = kept.size() - 1;
    if (from + 1 < to && sizes[to] < kShortColumns && sizes[to - 1] > sizes[to]) --to;
    std::rotate(kept.begin() + from, kept.begin() + from + 1, kept.begin() + to);
    std::rotate(sizes.begin() + from, sizes.begin() + from + 1, sizes.begin() + to);
    return;
  }
}

// Dimensions in the order of the first operand's strides (the operand's memory is walked forwards),
// neighbours merged where every operand allows it. With `in_order` nothing else decides the order,
// so that elements have the numbers that they have in the parameter's memory.
inline LayoutBuffer make_layout(int ndim, const int64_t* sizes,
                                const std::vector<const int64_t*>& strides, bool in_order = false) {
  std::vector<int> order;
  for (int d = 0; d < ndim; ++d) {
    if (sizes[d] != 1) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return strides[0][a] > strides[0][b]; });
  std::vector<int> kept;  // the innermost dimension of each merged run
  std::vector<int64_t> merged;
  for (const int d : order) {
    const bool joins =
        !kept.empty() && std::all_of(strides.begin(), strides.end(), [&](const int64_t* s) {
          return s[kept.back()] == s[d] * sizes[d];
        });
    if (joins) {
      kept.back() = d;
      merged.back() *= sizes[d];
    } else {
      kept.push_back(d);
      merged.push_back(sizes[d]);
    }
  }
  if (!in_order) put_block_last(kept, merged, strides);
  LayoutBuffer layout;
  if (kept.empty()) {  // a single element
    layout.ndim = 1;
    layout.numbers.assign(1 + strides.size(), 1);
    return layout;
  }
  layout.ndim = static_cast<int>(kept.size());
  layout.numbers = merged;
  for (const int64_t* s : strides) {
    for (const int d : kept) layout.numbers.push_back(s[d]);
  }
  return layout;
}

}  // namespace fusedopt
