// Searching for tensors that share memory.
#include "torch/overlap.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/variable.h>

#include "torch/python.h"
#include "torch/reading.h"

namespace fusedopt {

namespace {

constexpr const char* kWithOther = "shares memory with another tensor of this optimizer";
constexpr const char* kWithGradient = "shares memory with its gradient";

// All that one slot's step writes.
template <typename Each>
void for_each_written(const Work& work, const Each& each) {
  for (int k = 0; k < kMaxOperands; ++k) {
    if (k != 1 && work.operands[k].tensor != nullptr) each(work.operands[k]);
  }
  if (work.step.tensor != nullptr) each(work.step);
}

void find_written(const Reading& reading, Overlaps& overlaps) {
  overlaps.written.clear();
  overlaps.storages.clear(reading.ready.size() * kMaxOperands);
  overlaps.any_foreign = false;
  for (const int slot : reading.ready) {
    const Work& work = reading.works()[slot];
    overlaps.any_foreign = overlaps.any_foreign || work.foreign;
    for_each_written(work, [&](const Operand& operand) {
      if (operand.tensor->numel() == 0) return;
      overlaps.written.push_back(range_of(*operand.tensor, slot));
      overlaps.storages.add(operand.storage);
    });
  }
  sort(overlaps.written);
  overlaps.shared = find_overlapping(overlaps.written);
  overlaps.known = true;
}

// The memory of what torch's own step takes, as far as it has any of the usual kind.
struct Others {
  std::vector<Range> read;
  std::vector<Range> written;
};

Others find_others(const Reading& reading) {
  Others others;
  const auto enter = [](std::vector<Range>& ranges, const c10::TensorImpl& tensor) {
    const auto plain = plain_keys(tensor.key_set().has(c10::DispatchKey::CPU) ? c10::DeviceType::CPU
                                                                              : accelerator->type);
    if (!is_plain(tensor, plain) || tensor.numel() == 0 || !is_allocated(tensor)) return;
    ranges.push_back(range_of(tensor, -1));
  };
  for (size_t i = 0; i < reading.slots().size(); ++i) {
    const Slot& slot = reading.slots()[i];
    if (reading.works()[i].reason == nullptr || !slot.is_tensor) continue;
    const c10::TensorImpl& param = impl_of(slot.param);
    enter(others.written, param);
    const auto* meta = static_cast<const torch::autograd::AutogradMeta*>(param.autograd_meta());
    if (meta != nullptr && meta->grad_.defined()) {
      enter(others.read, *meta->grad_.unsafeGetTensorImpl());
    }
    if (slot.state == nullptr || !PyDict_Check(slot.state)) continue;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(slot.state, &position, &key, &value)) {
      if (is_tensor(value)) enter(others.written, impl_of(value));
    }
  }
  sort(others.read);
  sort(others.written);
  return others;
}

}  // namespace

void find_overlaps(Reading& reading, const std::vector<int>& suspects) {
  Overlaps& overlaps = reading.cache.overlaps;
  std::vector<Work>& works = reading.cache.works;
  const bool all = !overlaps.known || overlaps.any_foreign;
  if (!overlaps.known) find_written(reading, overlaps);
  bool any = false;
  const auto hand_over = [&](int slot, const char* reason) {
    any = true;
    if (works[slot].reason == nullptr) works[slot].reason = reason;
  };
  for (const int slot : overlaps.shared) hand_over(slot, kWithOther);
  for (const int slot : all ? reading.ready : suspects) {
    const Operand& gradient = works[slot].operands[1];
    if (gradient.tensor == nullptr || works[slot].numel == 0 ||
        !may_be_written(gradient, overlaps)) {
      continue;
    }
    for_each_overlapping(overlaps.written, range_of(*gradient.tensor, slot), [&](int other) {
      hand_over(slot, other == slot ? kWithGradient : kWithOther);
      hand_over(other, kWithOther);
    });
  }
  if (any || reading.any_for_torch) {
    const Others others = find_others(reading);
    for (const int slot : reading.ready) {
      const Work& work = works[slot];
      const auto meets = [&](const std::vector<Range>& ranges, const c10::TensorImpl& tensor) {
        if (tensor.numel() == 0) return;
        for_each_overlapping(ranges, range_of(tensor, slot),
                             [&](int) { hand_over(slot, kWithOther); });
      };
      if (work.reason != nullptr) continue;
      if (work.operands[1].tensor != nullptr) meets(others.written, *work.operands[1].tensor);
      for_each_written(work, [&](const Operand& operand) {
        meets(others.written, *operand.tensor);
        meets(others.read, *operand.tensor);
      });
    }
  }
  if (!any) return;
  reading.any_for_torch = true;
  const auto shared = [&](int slot) { return works[slot].reason != nullptr; };
  for (std::vector<int>* slots : {&reading.ready, &reading.checked}) {
    slots->erase(std::remove_if(slots->begin(), slots->end(), shared), slots->end());
  }
}

std::vector<int> find_shared_gradients(const Reading& reading) {
  std::vector<Range> ranges;
  std::vector<char> shared(reading.works().size(), 0);
  for (const int slot : reading.ready) {
    const c10::TensorImpl& gradient = *reading.works()[slot].operands[1].tensor;
    if (gradient.numel() == 0) continue;
    ranges.push_back(range_of(gradient, slot));
    shared[slot] = may_overlap_itself(gradient) || is_frozen_inference(gradient);
  }
  sort(ranges);
  for (const int slot : find_overlapping(ranges)) shared[slot] = 1;
  std::vector<int> found;
  for (const int slot : reading.ready) {
    if (shared[slot]) found.push_back(slot);
  }
  return found;
}

}  // namespace fusedopt
