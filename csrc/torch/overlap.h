// Which tensors may share memory.
#pragma once

#include <algorithm>
#include <vector>

#include "torch/operand.h"

namespace fusedopt {

// The bytes from a tensor's first element to the end of its last.
struct Range {
  const char* begin;
  const char* end;
  int owner;
};

inline int64_t extent_of(const c10::TensorImpl& tensor) {
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  return (last + 1) * static_cast<int64_t>(tensor.itemsize());
}

inline Range range_of(const c10::TensorImpl& tensor, int owner) {
  const char* begin = address_of(tensor);
  return {begin, begin + extent_of(tensor), owner};
}

// The owners of all ranges that overlap another, some more than once. Tensors that interleave
// without sharing an element count as overlapping.
inline std::vector<int> find_overlapping(std::vector<Range>& ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<int> owners;
  for (size_t i = 1, furthest = 0; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[furthest].end) {
      owners.push_back(ranges[i].owner);
      owners.push_back(ranges[furthest].owner);
    }
    if (ranges[i].end > ranges[furthest].end) furthest = i;
  }
  return owners;
}

}  // namespace fusedopt
