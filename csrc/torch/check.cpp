// Checking, before anything is changed: which parameters a kernel can step, and whether their
// tensors fit.
#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <set>
#include <stdexcept>
#include <utility>

#include "engine/tuning.h"
#include "torch/operand.h"
#include "torch/plan.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

// Group index and parameter indices.
using Places = std::vector<std::pair<int, std::vector<int>>>;

// Why no kernel takes a parameter that isn't as usual, or null.
__attribute__((cold, noinline)) const char* why_not_covered(const c10::TensorImpl& tensor,
                                                            Work& work) {
  const c10::Device device = tensor.device();
  const bool accelerated = device.type() == accelerator->type;
  const auto plain = plain_keys(device.type());
  work.device = accelerated ? device.index() : kHost;
  if (is_plain(tensor, plain) && to_dtype(tensor, work.dtype)) {
    return is_allocated(tensor) ? nullptr : "its memory is not allocated";
  }
  if (tensor.layout() != c10::kStrided) return "sparse layout";
  if (!device.is_cpu() && !accelerated) return "no kernels for this device";
  if (tensor.key_set().has(c10::DispatchKey::Python)) return "tensor subclass";
  if (!is_plain(tensor, plain)) return "not a plain tensor";
  return c10::isComplexType(c10::typeMetaToScalarType(tensor.dtype()))
             ? "complex"
             : "no kernels for this dtype";
}

// Stores a tensor where the last step's was.
void set_operand(Work& work, int k, const Operand& operand) {
  work.moved = work.moved || (k != 1 && work.operands[k].address != operand.address);
  work.operands[k] = operand;
}

// The same of all that the step will write. Here, because it needs memory, which may fail.
bool make_own(const Work& work, bool with_step) {
  bool shared = with_step && make_own(work.step);
  for (int k = 0; k < kMaxOperands; ++k) {
    const Operand& operand = work.operands[k];
    if (k != 1 && operand.tensor != nullptr) shared = make_own(operand) || shared;
  }
  return shared;
}

c10::TensorImpl* gradient_of(PyObject* param) {
  // TensorImpl::grad() makes two calls to learn the same.
  const auto* meta = static_cast<const torch::autograd::AutogradMeta*>(
      THPVariable_Unpack(param).unsafeGetTensorImpl()->autograd_meta());
  return meta != nullptr && meta->grad_.defined() ? meta->grad_.unsafeGetTensorImpl() : nullptr;
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

// Fills works_ and ready_. What torch has already stepped is left out by its place in the list,
// whatever has become of it since. With `errors`, those are collected, by slot, and parameters
// without a gradient are checked as well.
void Plan::check(const py::object& state, const py::object& stepped_by_torch,
                 std::vector<std::string>* errors) {
  const bool is_dict = PyDict_Check(state.ptr());
  if (is_dict) read_states(state.ptr());
  std::set<std::pair<int, int>> done;
  if (!stepped_by_torch.is_none()) {
    for (const auto& [group, indices] : stepped_by_torch.cast<Places>()) {
      for (const int index : indices) done.emplace(group, index);
    }
  }
  const auto count = static_cast<int>(slots_.size());
  bool known = std::exchange(overlaps_known_, false) && works_.size() == slots_.size();
  works_.resize(count);
  ready_.clear();
  bool stale = false;  // addresses that were read before a tensor got memory of its own
  any_for_torch_ = any_fresh_ = false;
  devices_.clear();
  if (errors != nullptr) errors->assign(count, "");
  for (int i = 0; i < count; ++i) {
    if (i + kCheckAhead < count) prefetch_objects(slots_[i + kCheckAhead], works_[i + kCheckAhead]);
    const Slot& slot = slots_[i];
    Work& work = works_[i];
    const bool was_ready = work.ready;
    work.reason = nullptr;
    work.ready = work.moved = false;
    c10::TensorImpl* grad = gradient_of(slot.param);
    const bool wanted = grad != nullptr || errors != nullptr;
    if (wanted && (done.empty() || done.count({slot.group, slot.index}) == 0)) {
      try {
        if (is_dict && is_unchanged(slot, grad, work, stale)) {
          work.ready = true;
          work.first = false;
          ready_.push_back(i);
          known = known && was_ready;
          continue;
        }
        work.usual_for = nullptr;
        work.reason = is_dict ? check_slot(slot, grad, work) : "optimizer.state is not a dict";
        work.ready = work.reason == nullptr;
        if (work.ready) {
          if (is_usual(work)) work.usual_for = groups_[slot.group].variant.cpu;
          stale = make_own(work, optimizer_->counts_steps && !work.fresh) || stale;
          ready_.push_back(i);
          any_fresh_ = any_fresh_ || work.fresh || work.move_step;
        } else {
          any_for_torch_ = true;
        }
      } catch (const std::exception& error) {
        if (errors == nullptr) throw;
        (*errors)[i] = std::string("error: ") + error.what();
      }
    }
    known = known && work.ready == was_ready && !work.moved;
  }
  overlaps_known_ = known;
  if (stale) return check(state, stepped_by_torch, errors);
  if (cuts_.learn(slots_.size() * (kMaxStates + 2))) {  // which is Python code: all anew
    read_slots();
    check(state, stepped_by_torch, errors);
  }
}

// Why torch's own step takes this parameter, or null, and then `work` is filled. Throws on what
// torch refuses.
const char* Plan::check_slot(const Slot& slot, c10::TensorImpl* grad, Work& work) {
  const Group& group = groups_[slot.group];
  if (group.torch_only != nullptr) return group.torch_only;
  c10::TensorImpl* taken = THPVariable_Unpack(slot.param).unsafeGetTensorImpl();
  work.traces.autograd = taken->autograd_meta();
  work.cut = 0;
  if (taken->key_set() != kPlainKeys && is_dtensor(slot.param)) {
    if (const char* reason = take_pieces(slot, work, taken, grad)) return reason;
  }
  c10::TensorImpl& param = *taken;
  const Operand operand = operand_of(param);
  work.device = kHost;
  if (param.key_set() != kPlainKeys || operand.address == nullptr || !to_dtype(param, work.dtype)) {
    if (const char* reason = why_not_covered(param, work)) return reason;
  }
  const Shape shape(param, work.device);
  const bool dense = param.is_non_overlapping_and_dense();
  work.dense = dense;
  work.moved = work.moved || work.numel != param.numel();
  work.numel = param.numel();
  set_operand(work, 0, operand);
  if (grad != nullptr) {
    work.operands[1] = operand_of(*grad);
    if (!fits(*grad, work.operands[1].address, shape)) {
      if (const char* reason = check_gradient(slot, *grad, param)) return reason;
      work.dense = dense && same_strides(*grad, param);
    }
  } else {
    work.operands[1] = {};
  }
  if (param.key_set() != shape.keys) refuse_inference(slot, "", param);
  if (!dense && is_expanded(param)) {
    throw std::runtime_error(name_of(slot) +
                             ": more than one element of it refers to a single memory location; "
                             "expected a tensor that is not expanded, such as its clone()");
  }
  if (!dense && may_overlap_itself(param)) return "its elements may share memory";
  if (const char* reason = check_state(slot, shape, work)) return reason;
  if (!work.dense || work.extent != 0) measure_extent(work);
  if (grad != nullptr && shares_storage_with_gradient(work) && shares_memory_with_gradient(work)) {
    return "shares memory with its gradient";
  }
  return work.device == kHost ? nullptr : check_device(slot, work);
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
  const auto plain = plain_keys(param.device().type());
  if (!is_plain(grad, plain)) return "its gradient is not a plain tensor";
  refuse_inference(slot, ": its gradient", grad);
  return is_allocated(grad) ? nullptr : "its gradient's memory is not allocated";
}

const char* Plan::check_state(const Slot& slot, const Shape& shape, Work& work) {
  const Variant& variant = groups_[slot.group].variant;
  const int states = variant.cpu->states;
  const auto forget = [&](int from) {
    for (int k = from; k < kMaxOperands; ++k) {
      if (work.operands[k].tensor != nullptr) set_operand(work, k, {});
    }
  };
  work.first = work.fresh = work.device_step = work.move_step = false;
  if (states == 0 && !optimizer_->counts_steps) return forget(2), nullptr;
  if (slot.state != nullptr && !PyDict_Check(slot.state)) return "its state is not a dict";
  if (slot.state == nullptr || PyDict_GET_SIZE(slot.state) == 0) {
    work.first = work.fresh = true;
    return forget(2), nullptr;
  }
  PyObject** values = work.traces.state;
  const uint64_t version = version_of(slot.state);
  if (std::exchange(work.traces.version, version) != version || version == 0) {
    read_state(slot.state, values);
  }
  if (optimizer_->counts_steps) {
    if (const char* reason = check_step(slot, values[state_keys_.size()], work)) return reason;
  }
  for (int k = 0; k < states; ++k) {
    PyObject* value = values[variant.keys[k]];
    if (!optimizer_->counts_steps && (value == nullptr || value == Py_None)) {
      work.first = work.fresh = true;
      return forget(2), nullptr;
    }
    const char* key = optimizer_->keys[variant.keys[k]];
    if (value == nullptr) {
      throw py::key_error(name_of(slot) + ": its state has no '" + key +
                          "', which these options need");
    }
    if (!THPVariable_Check(value)) {
      throw py::type_error(name_of(slot) + ": state['" + key + "'] must be a tensor, got " +
                           Py_TYPE(value)->tp_name);
    }
    c10::TensorImpl* taken = THPVariable_Unpack(value).unsafeGetTensorImpl();
    if (work.cut != 0) {
      if (const char* reason = take_piece(slot, key, value, work, taken)) return reason;
    }
    c10::TensorImpl& tensor = *taken;
    set_operand(work, 2 + k, operand_of(tensor));
    if (work.dense && fits(tensor, work.operands[2 + k].address, shape)) continue;
    const c10::TensorImpl& param = *work.operands[0].tensor;
    const char* reason = check_state_tensor(slot, key, tensor, param, variant.lerp);
    if (reason != nullptr) return reason;
    work.dense = work.dense && same_strides(tensor, param);
  }
  forget(2 + states);
  return nullptr;
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
  const auto plain = plain_keys(param.device().type());
  if (!is_plain(tensor, plain)) return "its state is not a plain tensor";
  if (!is_allocated(tensor)) return "its state's memory is not allocated";
  return may_overlap_itself(tensor) ? "its state's elements may share memory" : nullptr;
}

const char* Plan::check_step(const Slot& slot, PyObject* step, Work& work) const {
  if (step == nullptr) throw py::key_error(name_of(slot) + ": its state has no 'step'");
  if (!THPVariable_Check(step)) {
    throw py::type_error(name_of(slot) + ": state['step'] must be a tensor, got " +
                         Py_TYPE(step)->tp_name);
  }
  c10::TensorImpl& tensor = *THPVariable_Unpack(step).unsafeGetTensorImpl();
  work.moved = work.moved || (work.device != kHost && work.step.tensor != &tensor);
  work.step = operand_of(tensor);
  work.device_step = false;
  work.float_step = tensor.dtype() == caffe2::TypeMeta::Make<float>();
  if (is_usual_step(tensor) && work.step.address != nullptr) return nullptr;
  const auto type = c10::typeMetaToScalarType(tensor.dtype());
  if (tensor.numel() != 1 || type == c10::kBool || c10::isComplexType(type)) {
    throw std::runtime_error(name_of(slot) + ": state['step'] has " + describe(tensor) +
                             ", expected one real number");
  }
  if (work.device != kHost && tensor.device().type() == accelerator->type) {
    const bool countable = is_number_on_device(tensor, work.step_dtype) &&
                           tensor.device().index() == work.device &&
                           (work.float_step || work.step_dtype == Dtype::kFloat64);
    work.device_step = countable;
    refuse_inference(slot, ": state['step']", tensor);
    return countable ? nullptr : "its step count is elsewhere";
  }
  if (!is_plain_cpu(tensor) || !is_allocated(tensor)) return "its step count is elsewhere";
  refuse_inference(slot, ": state['step']", tensor);
  return nullptr;
}

}  // namespace fusedopt
