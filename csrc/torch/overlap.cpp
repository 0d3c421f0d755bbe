// Which of an optimizer's tensors may share memory, so that a kernel must not step them side by
// side.
#include "torch/overlap.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

#include "torch/plan.h"

namespace fusedopt {

// Is the gradient's memory written under another name, element by element other?
bool Plan::shares_memory_with_gradient(const Work& work) const {
  const Operand& grad = work.operands[1];
  for (int k = 0; k < kMaxOperands; ++k) {
    const Operand& other = work.operands[k];
    if (k != 1 && other.tensor != nullptr && other.storage == grad.storage &&
        !(other.address == grad.address && work.dense)) {
      return work.numel != 0;
    }
  }
  return false;
}

// Other strides at the same addresses reach other memory.
void Plan::measure_extent(Work& work) const {
  int64_t extent = 0;
  for (int k = 0; !work.dense && k < kMaxOperands; ++k) {
    const c10::TensorImpl* tensor = work.operands[k].tensor;
    if (k != 1 && tensor != nullptr) extent += extent_of(*tensor) << k;
  }
  work.moved = work.moved || work.extent != extent;
  work.extent = extent;
}

// Parameters and states that may share memory (or be listed twice) go to torch's own step, which
// works through them one after the other. Searched for only where some address differs from the
// last step's.
void Plan::find_overlaps() {
  if (!overlaps_known_) {
    std::vector<Range> ranges;
    for (const int slot : ready_) {
      for (int k = 0; k < kMaxOperands; ++k) {
        const c10::TensorImpl* tensor = works_[slot].operands[k].tensor;
        if (k != 1 && tensor != nullptr && tensor->numel() != 0) {
          ranges.push_back(range_of(*tensor, slot));
        }
      }
      // Threads of a device count their steps side by side.
      if (works_[slot].device_step) ranges.push_back(range_of(*works_[slot].step.tensor, slot));
    }
    overlapping_ = find_overlapping(ranges);
    overlaps_known_ = true;
  }
  if (overlapping_.empty()) return;
  any_for_torch_ = true;
  for (const int slot : overlapping_) {
    works_[slot].reason = "shares memory with another tensor of this optimizer";
  }
  const auto shared = [&](int slot) { return works_[slot].reason != nullptr; };
  ready_.erase(std::remove_if(ready_.begin(), ready_.end(), shared), ready_.end());
}

}  // namespace fusedopt
