// Checking, before anything is changed: which parameters a kernel can step, and whether their
// tensors fit.
#include <ATen/core/Tensor.h>
#include <c10/core/InferenceMode.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <set>
#include <sstream>
#include <stdexcept>

#include "torch/overlap.h"
#include "torch/plan.h"

namespace fusedopt {

namespace {

// Group index and parameter indices.
using Places = std::vector<std::pair<int, std::vector<int>>>;

// A dense tensor in this process' memory and nothing else: no subclass with a dispatch of its own,
// no lazy negation or conjugation, no functorch or functionalization wrapper.
bool is_plain_cpu(const c10::TensorImpl& tensor) {
  constexpr c10::DispatchKeySet kPlain({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                                        c10::DispatchKey::ADInplaceOrView,
                                        c10::DispatchKey::AutocastCPU});
  return (tensor.key_set().raw_repr() & ~kPlain.raw_repr()) == 0;
}

bool to_dtype(at::ScalarType type, Dtype& dtype) {
  switch (type) {
    case at::kFloat:
      dtype = Dtype::kFloat32;
      return true;
    case at::kDouble:
      dtype = Dtype::kFloat64;
      return true;
    case at::kBFloat16:
      dtype = Dtype::kBFloat16;
      return true;
    case at::kHalf:
      dtype = Dtype::kFloat16;
      return true;
    default:
      return false;
  }
}

const char* why_not_covered(const c10::TensorImpl& tensor, const char* subclass, Dtype& dtype) {
  if (tensor.layout() != at::kStrided) return "sparse layout";
  if (!tensor.device().is_cpu()) return "no kernels for this device";
  if (!is_plain_cpu(tensor))
    return tensor.key_set().has(c10::DispatchKey::Python) ? subclass : "not a plain tensor";
  const auto type = c10::typeMetaToScalarType(tensor.dtype());
  if (!to_dtype(type, dtype))
    return c10::isComplexType(type) ? "complex" : "no kernels for this dtype";
  return nullptr;
}

// A storage that was resized to nothing, as sharding frameworks do: torch's own operators know how
// to refuse it.
const char* why_not_allocated(const c10::TensorImpl& tensor) {
  return tensor.storage_initialized() ? nullptr : "its memory is not allocated";
}

bool is_expanded(const c10::TensorImpl& tensor) {
  if (tensor.layout() != at::kStrided) return false;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1 && tensor.stride(d) == 0) return true;
  }
  return false;
}

// The same elements at the same offsets: equal strides, wherever a dimension has more than one
// element.
bool same_strides(const c10::TensorImpl& a, const c10::TensorImpl& b) {
  if (a.is_contiguous() && b.is_contiguous()) return true;
  const auto sizes = a.sizes();
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1 && a.strides()[d] != b.strides()[d]) return false;
  }
  return true;
}

std::string describe(const c10::TensorImpl& tensor) {
  std::ostringstream text;
  text << "shape " << tensor.sizes() << ", dtype " << c10::typeMetaToScalarType(tensor.dtype())
       << ", device " << tensor.device();
  return text.str();
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
  if (const char* reason = why_not_covered(*param, "tensor subclass", work.dtype)) return reason;
  if (const char* reason = why_not_allocated(*param)) return reason;
  c10::TensorImpl* grad = param->grad().defined() ? param->grad().unsafeGetTensorImpl() : nullptr;
  if (grad != nullptr) {
    if (grad->layout() != at::kStrided) return "sparse gradient";
    if (grad->dtype() != param->dtype() || grad->device() != param->device() ||
        grad->sizes() != param->sizes()) {
      throw std::runtime_error(name_of(slot) + ": its gradient has " + describe(*grad) +
                               ", expected " + describe(*param));
    }
    if (!is_plain_cpu(*grad)) return "its gradient is not a plain tensor";
    if (const char* reason = why_not_allocated(*grad)) return reason;
  }
  if (param->is_inference() && !c10::InferenceMode::is_enabled()) {
    throw std::runtime_error(name_of(slot) +
                             " is an inference tensor: it can only be changed in inference mode");
  }
  if (!param->is_non_overlapping_and_dense()) {
    const auto sizes = param->sizes();
    if (is_expanded(*param)) {
      throw std::runtime_error(name_of(slot) +
                               ": more than one element of it refers to a single memory location; "
                               "expected a tensor that is not expanded, such as its clone()");
    }
    if (!is_injective(static_cast<int>(sizes.size()), sizes.data(), param->strides().data()) &&
        param->numel() != 0) {
      return "its elements may share memory";
    }
  }
  work.slot = index;
  work.step = nullptr;
  std::fill_n(work.operands, kMaxOperands, nullptr);
  work.operands[0] = param;
  work.operands[1] = grad;
  const char* reason = nullptr;
  check_state(slot, group, work, &reason);
  work.dense = param->is_non_overlapping_and_dense();
  for (int k = 1; work.dense && k < 2 + group.variant.cpu->states; ++k) {
    if (work.operands[k] != nullptr) work.dense = same_strides(*param, *work.operands[k]);
  }
  return reason;
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
  if (optimizer_->counts_steps) check_step(slot, values[state_keys_.size()], work);
  for (int k = 0; k < states; ++k) {
    const char* key = optimizer_->keys[group.variant.keys[k]];
    PyObject* value = values[group.variant.keys[k]];
    if (!optimizer_->counts_steps && (value == nullptr || value == Py_None)) {
      work.first = work.fresh = true;
      return;
    }
    if (value == nullptr) {
      throw py::key_error(name_of(slot) + ": its state has no '" + key +
                          "', which these options need");
    }
    if (!THPVariable_Check(value)) {
      throw py::type_error(name_of(slot) + ": state['" + key + "'] must be a tensor, got " +
                           Py_TYPE(value)->tp_name);
    }
    c10::TensorImpl* tensor = THPVariable_Unpack(value).unsafeGetTensorImpl();
    const c10::TensorImpl& param = *work.operands[0];
    const bool fits =
        tensor->dtype() == param.dtype() ||
        (!group.variant.lerp && c10::isFloatingType(c10::typeMetaToScalarType(tensor->dtype())));
    if (!fits || tensor->layout() != at::kStrided || tensor->sizes() != param.sizes() ||
        tensor->device() != param.device() || is_expanded(*tensor)) {
      throw std::runtime_error(name_of(slot) + ": state['" + key + "'] has " + describe(*tensor) +
                               (is_expanded(*tensor) ? ", expanded" : "") + ", expected " +
                               describe(param));
    }
    if (tensor->dtype() != param.dtype()) *reason = "its state has another dtype";
    if (!is_plain_cpu(*tensor)) *reason = "its state is not a plain tensor";
    if (*reason == nullptr) *reason = why_not_allocated(*tensor);
    if (*reason != nullptr) return;
    if (!tensor->is_non_overlapping_and_dense() &&
        !is_injective(static_cast<int>(tensor->dim()), tensor->sizes().data(),
                      tensor->strides().data())) {
      *reason = "its state's elements may share memory";
      return;
    }
    work.operands[2 + k] = tensor;
  }
}

void Plan::check_step(const Slot& slot, PyObject* step, Work& work) const {
  if (step == nullptr) throw py::key_error(name_of(slot) + ": its state has no 'step'");
  if (!THPVariable_Check(step)) {
    throw py::type_error(name_of(slot) + ": state['step'] must be a tensor, got " +
                         Py_TYPE(step)->tp_name);
  }
  work.step = THPVariable_Unpack(step).unsafeGetTensorImpl();
  if (work.step->numel() != 1) {
    throw std::runtime_error(name_of(slot) + ": state['step'] has " + describe(*work.step) +
                             ", expected one element");
  }
}

// Parameters and states that may share memory (or be listed twice) go to torch's own step, which
// works through them one after the other. Searched for only where some address differs from the
// last step's.
void Plan::find_overlaps() {
  size_t seen = 0;
  bool same = overlapping_.size() == slots_.size();
  for (const Work& work : works_) {
    for (int k = 0; k < kMaxOperands; ++k) {
      if (k == 1 || work.operands[k] == nullptr) continue;
      const Address address{work.operands[k]->data(), work.operands[k]->numel()};
      if (seen == addresses_.size()) addresses_.emplace_back();
      same = same && addresses_[seen] == address;
      addresses_[seen++] = address;
    }
  }
  same = same && addresses_.size() == seen;
  addresses_.resize(seen);
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
