// Searching for tensors that share memory: reads tensors and states, and writes the cache and why
// torch steps a slot.
#include "torch/overlap.h"

#include <ATen/core/Tensor.h>

#include "torch/look.h"
#include "torch/memory.h"
#include "torch/python.h"
#include "torch/reading.h"

namespace fusedopt {

namespace {

constexpr const char* kWithOther = "shares memory with another tensor of this optimizer";
constexpr const char* kWithGradient = "shares memory with its gradient";

// All that one slot's step writes.
template <typename Each>
void for_each_written(const Work& work, const Each& each) {
  for (int k = 0; k < kFirstState + kMaxEntries; ++k) {
    if (k != kGrad && work.operands[k].tensor != nullptr) each(work.operands[k]);
  }
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

// The memory of what torch's own step takes.
struct Others {
  std::vector<Range> read;
  std::vector<Range> written;
};

// Adds the memory of a slot that torch's own step takes. Returns why nobody knows where the memory
// is, or null.
const char* enter(Reading& reading, const Slot& slot, Others& others) {
  constexpr const char* kUnknown = "a tensor doesn't say where its memory is";
  const c10::TensorImpl& param = impl_of(slot.param);
  if (!for_each_memory(param, slot.param, [&](Range range) { others.written.push_back(range); })) {
    return kUnknown;
  }
  if (c10::TensorImpl* grad = gradient_of(reading, slot.param)) {
    const auto read = [&](Range range) { others.read.push_back(range); };
    if (!for_each_memory(*grad, grad->pyobj_slot()->load_pyobj(), read)) return kUnknown;
  }
  if (slot.state == nullptr || !PyDict_Check(slot.state)) return nullptr;
  PyObject *key, *value;
  Py_ssize_t position = 0;
  while (PyDict_Next(slot.state, &position, &key, &value)) {
    const auto written = [&](Range range) { others.written.push_back(range); };
    if (is_tensor(value) && !for_each_memory(impl_of(value), value, written)) return kUnknown;
  }
  return nullptr;
}

Others find_others(Reading& reading) {
  Others others;
  for (size_t i = 0; i < reading.slots().size(); ++i) {
    const Slot& slot = reading.slots()[i];
    if (reading.works()[i].reason == nullptr || !slot.is_tensor) continue;
    if (const char* unknown = enter(reading, slot, others)) by_user(reading, unknown);
  }
  sort(others.read);
  sort(others.written);
  return others;
}

// An option that is a tensor which the step writes has another value for each parameter, so torch
// steps all.
void find_written_options(Reading& reading, const Others& others) {
  const auto refuse = [&](int) { by_user(reading, "an option is a tensor that the step writes"); };
  for (const at::Tensor& option : reading.read.numbers) {
    for_each_memory(*option.unsafeGetTensorImpl(), nullptr, [&](Range range) {
      for_each_overlapping(reading.cache.overlaps.written, range, refuse);
      for_each_overlapping(others.written, range, refuse);
      if (!reading.scaler.scaled) return;
      for (const int slot : reading.ready) {
        const c10::TensorImpl& tensor = *reading.works()[slot].operands[kGrad].tensor;
        const Range gradient = range_of(tensor, slot);
        const bool meets = gradient.begin < range.end && range.begin < gradient.end;
        if (meets && tensor.numel() != 0) refuse(slot);
      }
    });
  }
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
    const Operand& gradient = works[slot].operands[kGrad];
    if (gradient.tensor == nullptr || works[slot].numel == 0 ||
        !may_be_written(gradient, overlaps)) {
      continue;
    }
    for_each_overlapping(overlaps.written, range_of(*gradient.tensor, slot), [&](int other) {
      hand_over(slot, other == slot ? kWithGradient : kWithOther);
      hand_over(other, kWithOther);
    });
  }
  Others others;
  if (any || reading.any_for_torch) {
    others = find_others(reading);
    for (const int slot : reading.ready) {
      const Work& work = works[slot];
      const auto meets = [&](const std::vector<Range>& ranges, const c10::TensorImpl& tensor) {
        if (tensor.numel() == 0) return;
        for_each_overlapping(ranges, range_of(tensor, slot),
                             [&](int) { hand_over(slot, kWithOther); });
      };
      if (work.reason != nullptr) continue;
      if (work.operands[kGrad].tensor != nullptr)
        meets(others.written, *work.operands[kGrad].tensor);
      for_each_written(work, [&](const Operand& operand) {
        meets(others.written, *operand.tensor);
        meets(others.read, *operand.tensor);
      });
    }
  }
  find_written_options(reading, others);
  if (!any) return;
  reading.any_for_torch = true;
  const auto shared = [&](int slot) { return works[slot].reason != nullptr; };
  for (std::vector<int>* slots : {&reading.ready, &reading.checked}) {
    slots->erase(std::remove_if(slots->begin(), slots->end(), shared), slots->end());
  }
}

}  // namespace fusedopt
