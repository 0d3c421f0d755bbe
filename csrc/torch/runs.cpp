// Runs of a DTensor's piece: reads sizes and strides, and nothing else.
#include "torch/runs.h"

#include <algorithm>
#include <numeric>

namespace fusedopt {

std::vector<Run> runs_of(const c10::TensorImpl& piece, const Extent& extent) {
  if (piece.numel() == 0) return {};
  const auto sizes = piece.sizes();
  std::vector<int> order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return piece.strides()[a] > piece.strides()[b]; });
  // The innermost dimensions that are whole, and the one around them.
  auto inner = static_cast<int>(order.size());
  int64_t length = 1;
  while (inner > 0) {
    const int d = order[--inner];
    length *= sizes[d];
    if (sizes[d] != extent.sizes[d]) break;
  }
  std::vector<Run> runs;
  for (int64_t start = 0; start < piece.numel(); start += length) {
    int64_t rest = start;
    int64_t origin = 0;
    int64_t stride = 1;  // in the whole
    for (auto at = static_cast<int>(order.size()) - 1; at >= 0; --at) {
      const int d = order[at];
      origin += (extent.offsets[d] + rest % sizes[d]) * stride;
      rest /= sizes[d];
      stride *= extent.sizes[d];
    }
    runs.push_back({start, length, origin});
  }
  return runs;
}

}  // namespace fusedopt
