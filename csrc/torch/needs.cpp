// What a step lacks, once it is known who steps what: reads the reading, and writes the needs, or
// that torch's step takes a slot. Runs no Python code.
#include "torch/needs.h"

#include <algorithm>

#include "torch/look.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

// Calls each(operand) for every tensor that the step will write and whose memory is shared until
// somebody writes.
template <typename Each>
void for_each_lazy_copy(const Reading& reading, const Work& work, const Each& each) {
  const bool scaled = reading.scaler.scaled;
  if (!work.foreign && !scaled) return;
  const auto look_at = [&](const Operand& operand) {
    if (operand.tensor != nullptr && is_lazily_copied(operand)) each(operand);
  };
  for (int k = 0; k < kFirstState + kMaxEntries; ++k) {
    if (k != kGrad || scaled) look_at(work.operands[k]);
  }
}

bool is_lacking(const Work& work) {
  return work.fresh || work.lacks_remainder || work.lacks_roundings || work.move_scalars;
}

std::vector<py::object> numbers_to_move(const Keys& keys, const Work& work, size_t scalars) {
  std::vector<py::object> moved;
  for (size_t k = 0; work.move_scalars && k < scalars; ++k) {
    PyObject* value = work.numbers_on_device[k] ? nullptr : work.traces.state[keys.scalar(k)];
    moved.push_back(py::reinterpret_borrow<py::object>(value));
  }
  return moved;
}

}  // namespace

void find_shared(Reading& reading) {
  if (!reading.scaler.scaled) return;
  for (const int slot : find_shared_gradients(reading)) {
    reading.needs.shared_gradients.push_back(THPVariable_Unpack(reading.slots()[slot].param));
  }
}

void find_needs(Reading& reading) {
  Needs& needs = reading.needs;
  const Keys& keys = reading.keys;
  for (const int index : reading.scaler.scaled ? reading.ready : reading.checked) {
    const Work& work = reading.works()[index];
    const Slot& slot = reading.slots()[index];
    const Group& group = reading.groups[slot.group];
    for_each_lazy_copy(reading, work, [&](const Operand& operand) {
      needs.lazy_copies.push_back(tensor_of(operand.tensor));
    });
    if (!is_lacking(work)) continue;
    const bool on_device =
        work.device != kHost && (group.fused || keys.optimizer->scalars_on_device ||
                                 counts_on_device(reading, group, work));
    needs.fresh.push_back(
        {py::reinterpret_borrow<py::object>(slot.param),
         py::reinterpret_borrow<py::object>(slot.state),
         work.fresh,
         work.lacks_remainder,
         work.lacks_roundings,
         numbers_to_move(keys, work, group.scalars),
         &group,
         on_device ? work.operands[kParam].tensor->device() : c10::Device(c10::kCPU),
         {},
         {}});
  }
  find_shared(reading);
}

void give_up(Reading& reading) {
  for (const int slot : reading.ready) {
    Work& work = reading.cache.works[slot];
    if (is_lacking(work)) work.reason = "its state doesn't stay in optimizer.state";
    for_each_lazy_copy(reading, work,
                       [&](const Operand&) { work.reason = "its memory doesn't stay its own"; });
  }
  if (reading.scaler.scaled) {
    for (const int slot : find_shared_gradients(reading)) {
      reading.cache.works[slot].reason = "its gradient doesn't stay its own";
    }
  }
  const auto given = [&](int slot) { return reading.works()[slot].reason != nullptr; };
  const auto kept = std::remove_if(reading.ready.begin(), reading.ready.end(), given);
  reading.any_for_torch = reading.any_for_torch || kept != reading.ready.end();
  reading.ready.erase(kept, reading.ready.end());
}

}  // namespace fusedopt
