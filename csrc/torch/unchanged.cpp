// Most steps find every tensor of a parameter as the last one left it. That is seen here, with
// half the instructions of checking it anew.
#include <ATen/core/Tensor.h>

#include "torch/operand.h"
#include "torch/plan.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

// Does it lie where it lay, in memory that is its own, and is its version counted there? Memory
// shared until it is written becomes its own; addresses read before are `stale` then.
FUSEDOPT_INLINE bool lies_as_before(const c10::TensorImpl& tensor, const Operand& before,
                                    bool& stale) {
  if (&tensor != before.tensor ||
      tensor.unsafe_storage().unsafeGetStorageImpl() != before.storage ||
      version_counter_of(tensor) != before.version) {
    return false;
  }
  if (make_own(before)) {
    stale = true;
    return false;
  }
  return address_of(tensor) == before.address;
}

FUSEDOPT_INLINE c10::TensorImpl& unpack(PyObject* variable) {
  return *THPVariable_Unpack(variable).unsafeGetTensorImpl();
}

}  // namespace

// All that checking a slot will read, as far as it lies where it lay: of Python's objects the type
// and what follows, of torch's what follows the reference count.
void prefetch_objects(const Slot& slot, const Work& last) {
  prefetch<8, 24>(slot.param);
  prefetch<8, sizeof(PyDictObject)>(slot.state);
  prefetch<0, 48>(last.traces.autograd);
  for (const PyObject* value : last.traces.state) prefetch<8, 24>(value);
  const auto prefetch_operand = [](const Operand& operand) {
    if (operand.tensor == nullptr) return;
    prefetch<16, sizeof(c10::TensorImpl)>(operand.tensor);
    prefetch<16, 64>(operand.storage);
  };
  for (const Operand& operand : last.operands) prefetch_operand(operand);
  prefetch_operand(last.step);
}

// Whether check_slot would find in a slot what it has found before, where all was as usual: plain
// tensors of the host in one dense layout, and a float32 step count. Only the gradient may be
// another tensor, as it is after each backward pass. Whatever differs is check_slot's to judge.
bool Plan::is_unchanged(const Slot& slot, c10::TensorImpl* grad, Work& work, bool& stale) const {
  const Group& group = groups_[slot.group];
  const Variant& variant = group.variant;
  if (work.usual_for != variant.cpu || group.torch_only != nullptr || grad == nullptr) return false;
  const c10::TensorImpl& param = unpack(slot.param);
  Dtype dtype;
  if (!lies_as_before(param, work.operands[0], stale) || param.key_set() != kPlainKeys ||
      !to_dtype(param, dtype) || dtype != work.dtype || param.numel() != work.numel ||
      !param.is_non_overlapping_and_dense()) {
    return false;
  }
  const Shape shape(param, kHost);
  const Operand gradient = operand_of(*grad);
  if (!fits(*grad, gradient.address, shape)) return false;
  if (variant.cpu->states != 0 || optimizer_->counts_steps) {
    if (slot.state == nullptr || !PyDict_Check(slot.state)) return false;
    const uint64_t version = version_of(slot.state);
    if (version == 0 || version != work.traces.version) return false;
    PyObject* const* values = work.traces.state;
    if (optimizer_->counts_steps) {
      const c10::TensorImpl& step = unpack(values[state_keys_.size()]);
      if (!lies_as_before(step, work.step, stale) || !is_usual_step(step)) return false;
    }
    for (int k = 0; k < variant.cpu->states; ++k) {
      const c10::TensorImpl& tensor = unpack(values[variant.keys[k]]);
      const Operand& before = work.operands[2 + k];
      if (!lies_as_before(tensor, before, stale) || !fits(tensor, before.address, shape))
        return false;
    }
  }
  work.operands[1] = gradient;
  return !shares_storage_with_gradient(work);
}

// To be asked when check_slot was content.
bool Plan::is_usual(const Work& work) const {
  return work.ready && work.dense && work.device == kHost && work.cut == 0 && !work.first &&
         work.operands[0].tensor->key_set() == kPlainKeys && work.operands[1].tensor != nullptr &&
         (!optimizer_->counts_steps || is_usual_step(*work.step.tensor)) && work.numel != 0;
}

}  // namespace fusedopt
