// Checking, before anything is changed: which parameters a kernel can step, and whether their
// tensors fit.
#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <set>
#include <stdexcept>

#include "torch/operand.h"
#include "torch/overlap.h"
#include "torch/plan.h"

namespace fusedopt {

namespace {

// Group index and parameter indices.
using Places = std::vector<std::pair<int, std::vector<int>>>;

const char* why_not_covered(const c10::TensorImpl& tensor, Dtype& dtype) {
  if (is_plain_cpu(tensor) && to_dtype(tensor, dtype)) {
    return is_allocated(tensor) ? nullptr : "its memory is not allocated";
  }
  if (tensor.layout() != c10::kStrided) return "sparse layout";
  if (!tensor.device().is_cpu()) return "no kernels for this device";
  if (tensor.key_set().has(c10::DispatchKey::Python)) return "tensor subclass";
  if (!is_plain_cpu(tensor)) return "not a plain tensor";
  return c10::isComplexType(c10::typeMetaToScalarType(tensor.dtype()))
             ? "complex"
             : "no kernels for this dtype";
}

// Is the gradient's memory written under another name, element by other element?
bool shares_memory_with_gradient(const Work& work) {
  const auto* storage = work.operands[1]->unsafe_storage().unsafeGetStorageImpl();
  for (int k = 0; k < kMaxOperands; ++k) {
    if (k == 1 || work.operands[k] == nullptr) continue;
    if (work.operands[k]->unsafe_storage().unsafeGetStorageImpl() == storage &&
        !(work.addresses[k] == work.addresses[1] && work.dense)) {
      return work.operands[0]->numel() != 0;
    }
  }
  return false;
}

}  // namespace

std::string Plan::name_of(const Slot& slot) const {
  std::string name = "param_groups[" + std::to_string(slot.group) + "]['params'][" +
                     std::to_string(slot.index) + "]";
  PyObject* param_names = PyDict_GetItemString(groups_[slot.group].dict, "param_names");
  if (param_names != nullptr && PyList_Check(param_names) &&
      slot.index < PyList_GET_SIZE(param_names)) {
    name += " (" + py::cast<std::string>(py::str(PyList_GET_ITEM(param_names, slot.index))) + ")";
  }
  return name;
}

// Fills reasons_ and works_. What torch has already stepped is left out by its place in the list,
// whatever has become of it since.
void Plan::check(const py::object& state, const py::object& stepped_by_torch) {
  const bool is_dict = PyDict_Check(state.ptr());
  if (is_dict) read_states(state.ptr());
  reasons_.assign(slots_.size(), nullptr);
  works_.clear();
  std::set<std::pair<int, int>> done;
  if (!stepped_by_torch.is_none()) {
    for (const auto& [group, indices] : stepped_by_torch.cast<Places>()) {
      for (const int index : indices) done.emplace(group, index);
    }
  }
  for (int i = 0; i < static_cast<int>(slots_.size()); ++i) {
    const auto& param = THPVariable_Unpack(slots_[i].param);
    if (!param.unsafeGetTensorImpl()->grad().defined()) continue;
    if (!done.empty() && done.count({slots_[i].group, slots_[i].index}) != 0) continue;
    Work work;
    reasons_[i] = is_dict ? check_slot(i, work) : "optimizer.state is not a dict";
    if (reasons_[i] == nullptr) works_.push_back(work);
  }
}

// Why torch's own step takes this parameter, or null, and then `work` is filled. Throws on what
// torch refuses.
const char* Plan::check_slot(int index, Work& work) const {
  const Slot& slot = slots_[index];
  const Group& group = groups_[slot.group];
  if (group.torch_only != nullptr) return group.torch_only;
  c10::TensorImpl* param = THPVariable_Unpack(slot.param).unsafeGetTensorImpl();
  if (const char* reason = why_not_covered(*param, work.dtype)) return reason;
  const at::Tensor& gradient = param->grad();
  c10::TensorImpl* grad = gradient.defined() ? gradient.unsafeGetTensorImpl() : nullptr;
  const bool dense = param->is_non_overlapping_and_dense();
  work.dense = dense;
  std::fill_n(work.operands, kMaxOperands, nullptr);
  std::fill_n(work.addresses, kMaxOperands, nullptr);
  work.operands[0] = param;
  work.operands[1] = grad;
  work.addresses[0] = address_of(*param);
  if (grad != nullptr && !fits(*grad, *param, &work.addresses[1])) {
    if (const char* reason = check_gradient(slot, *grad, *param)) return reason;
    work.dense = dense && same_strides(*grad, *param);
  }
  refuse_inference(slot, "", *param);
  if (!dense && is_expanded(*param)) {
    throw std::runtime_error(name_of(slot) +
                             ": more than one element of it refers to a single memory location; "
                             "expected a tensor that is not expanded, such as its clone()");
  }
  if (!dense && may_overlap_itself(*param)) return "its elements may share memory";
  work.slot = index;
  work.step = nullptr;
  const char* reason = nullptr;
  check_state(slot, group, work, &reason);
  if (reason == nullptr && grad != nullptr && shares_memory_with_gradient(work)) {
    reason = "shares memory with its gradient";
  }
  return reason;
}

void Plan::refuse_inference(const Slot& slot, const std::string& what,
                            const c10::TensorImpl& tensor) const {
  if (!is_frozen_inference(tensor)) return;
  throw std::runtime_error(name_of(slot) + what +
                           " is an inference tensor: it can only be changed in inference mode");
}

const char* Plan::check_gradient(const Slot& slot, const c10::TensorImpl& grad,
                                 const c10::TensorImpl& param) const {
  if (grad.layout() != c10::kStrided) return "sparse gradient";
  if (grad.dtype() != param.dtype() || grad.device() != param.device() ||
      !same_sizes(grad, param)) {
    throw std::runtime_error(name_of(slot) + ": its gradient has " + describe(grad) +
                             ", expected " + describe(param));
  }
  if (!is_plain_cpu(grad)) return "its gradient is not a plain tensor";
  refuse_inference(slot, ": its gradient", grad);
  return is_allocated(grad) ? nullptr : "its gradient's memory is not allocated";
}

void Plan::check_state(const Slot& slot, const Group& group, Work& work,
                       const char** reason) const {
  const int states = group.variant.cpu->states;
  work.first = work.fresh = false;
  if (states == 0 && !optimizer_->counts_steps) return;
  if (slot.state != nullptr && !PyDict_Check(slot.state)) {
    *reason = "its state is not a dict";
    return;
  }
  if (slot.state == nullptr || PyDict_GET_SIZE(slot.state) == 0) {
    work.first = work.fresh = true;
    return;
  }
  PyObject* values[kMaxStates + 1];
  read_state(slot.state, values);
  if (optimizer_->counts_steps) {
    *reason = check_step(slot, values[state_keys_.size()], work);
    if (*reason != nullptr) return;
  }
  const c10::TensorImpl& param = *work.operands[0];
  for (int k = 0; k < states; ++k) {
    PyObject* value = values[group.variant.keys[k]];
    if (!optimizer_->counts_steps && (value == nullptr || value == Py_None)) {
      work.first = work.fresh = true;
      return;
    }
    const char* key = optimizer_->keys[group.variant.keys[k]];
    if (value == nullptr) {
      throw py::key_error(name_of(slot) + ": its state has no '" + key +
                          "', which these options need");
    }
    if (!THPVariable_Check(value)) {
      throw py::type_error(name_of(slot) + ": state['" + key + "'] must be a tensor, got " +
                           Py_TYPE(value)->tp_name);
    }
    c10::TensorImpl* tensor = THPVariable_Unpack(value).unsafeGetTensorImpl();
    work.operands[2 + k] = tensor;
    if (fits(*tensor, param, &work.addresses[2 + k]) && tensor->is_non_overlapping_and_dense()) {
      continue;
    }
    *reason = check_state_tensor(slot, key, *tensor, param, group.variant.lerp);
    if (*reason != nullptr) return;
    work.dense = work.dense && same_strides(*tensor, param);
  }
}

// What doesn't fit at first sight: torch's own step may be able to deal with it, or nobody.
const char* Plan::check_state_tensor(const Slot& slot, const char* key,
                                     const c10::TensorImpl& tensor, const c10::TensorImpl& param,
                                     bool same_dtype) const {
  const bool dtype_fits =
      tensor.dtype() == param.dtype() ||
      (!same_dtype && c10::isFloatingType(c10::typeMetaToScalarType(tensor.dtype())));
  if (!dtype_fits || tensor.layout() != c10::kStrided || tensor.device() != param.device() ||
      !same_sizes(tensor, param) || is_expanded(tensor)) {
    throw std::runtime_error(name_of(slot) + ": state['" + key + "'] has " + describe(tensor) +
                             ", expected " + describe(param));
  }
  refuse_inference(slot, std::string(": state['") + key + "']", tensor);
  if (tensor.dtype() != param.dtype()) return "its state has another dtype";
  if (!is_plain_cpu(tensor)) return "its state is not a plain tensor";
  if (!is_allocated(tensor)) return "its state's memory is not allocated";
  return may_overlap_itself(tensor) ? "its state's elements may share memory" : nullptr;
}

const char* Plan::check_step(const Slot& slot, PyObject* step, Work& work) const {
  if (step == nullptr) throw py::key_error(name_of(slot) + ": its state has no 'step'");
  if (!THPVariable_Check(step)) {
    throw py::type_error(name_of(slot) + ": state['step'] must be a tensor, got " +
                         Py_TYPE(step)->tp_name);
  }
  work.step = THPVariable_Unpack(step).unsafeGetTensorImpl();
  const auto type = c10::typeMetaToScalarType(work.step->dtype());
  if (work.step->numel() != 1 || type == c10::kBool || c10::isComplexType(type)) {
    throw std::runtime_error(name_of(slot) + ": state['step'] has " + describe(*work.step) +
                             ", expected one real number");
  }
  if (!is_plain_cpu(*work.step) || !is_allocated(*work.step)) return "its step count is elsewhere";
  refuse_inference(slot, ": state['step']", *work.step);
  return nullptr;
}

// Parameters and states that may share memory (or be listed twice) go to torch's own step, which
// works through them one after the other. Searched for only where some address differs from the
// last step's.
void Plan::find_overlaps() {
  bool same = overlapping_.size() == slots_.size() && written_.size() == works_.size();
  written_.resize(works_.size());
  for (size_t i = 0; i < works_.size(); ++i) {
    const Work& work = works_[i];
    Written now{{work.addresses[0], work.addresses[2], work.addresses[3], work.addresses[4]},
                work.operands[0]->numel() * static_cast<int64_t>(work.operands[0]->itemsize())};
    if (!work.dense) {  // other strides at the same addresses reach other memory
      for (int k = 0; k < kMaxOperands; ++k) {
        if (k != 1 && work.operands[k] != nullptr) now.extent += extent_of(*work.operands[k]) << k;
      }
    }
    const Written& before = written_[i];
    same = same && now.extent == before.extent &&
           std::equal(now.addresses, now.addresses + 1 + kMaxStates, before.addresses);
    written_[i] = now;
  }
  if (!same) {
    std::vector<Range> ranges;
    for (const Work& work : works_) {
      for (int k = 0; k < kMaxOperands; ++k) {
        if (k == 1 || work.operands[k] == nullptr || work.operands[0]->numel() == 0) continue;
        ranges.push_back(range_of(*work.operands[k], work.slot));
      }
    }
    overlapping_.assign(slots_.size(), 0);
    for (const int slot : find_overlapping(ranges)) overlapping_[slot] = 1;
  }
  const auto shared = [&](const Work& work) { return overlapping_[work.slot] != 0; };
  for (const Work& work : works_) {
    if (shared(work)) reasons_[work.slot] = "shares memory with another tensor of this optimizer";
  }
  works_.erase(std::remove_if(works_.begin(), works_.end(), shared), works_.end());
}

}  // namespace fusedopt
