// Checking one parameter: can a kernel step it, and do its tensors fit? Reads tensors, and runs no
// Python code: a tensor whose class answers in Python is asked nothing but its keys.
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "torch/count.h"
#include "torch/look.h"
#include "torch/originals.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

constexpr const char* kOwnAttribute = "an attribute of a tensor's own hides one of torch.Tensor's";
constexpr const char* kOddKey = "its state has keys that only equal the names";

// Why no kernel takes a parameter that isn't as usual, or null.
__attribute__((cold, noinline)) const char* why_not_covered(Reading& reading,
                                                            const c10::TensorImpl& tensor,
                                                            Work& work) {
  if (tensor.key_set().has(c10::DispatchKey::Python)) return by_user(reading, "tensor subclass");
  const c10::Device device = tensor.device();
  const bool accelerated = device.type() == accelerator->type;
  const auto plain = plain_keys(device.type());
  work.device = accelerated ? device.index() : kHost;
  if (is_plain(tensor, plain) && to_dtype(tensor, work.dtype)) {
    return is_allocated(tensor) ? nullptr : "its memory is not allocated";
  }
  if (tensor.layout() != c10::kStrided) return "sparse layout";
  if (!device.is_cpu() && !accelerated) return "no kernels for this device";
  if (!is_plain(tensor, plain)) return "not a plain tensor";
  return c10::isComplexType(c10::typeMetaToScalarType(tensor.dtype()))
             ? "complex"
             : "no kernels for this dtype";
}

// Stores a tensor where the last step's was.
void set_operand(Work& work, int k, const Operand& operand) {
  if (k != kGrad) {
    work.moved = work.moved || work.operands[k].address != operand.address;
    work.foreign = work.foreign || (operand.tensor != nullptr && !owns_memory(operand));
  }
  work.operands[k] = operand;
}

void forget_operands(Work& work, int from) {
  for (int k = from; k < kMaxOperands; ++k) {
    if (work.operands[k].tensor != nullptr) set_operand(work, k, {});
  }
}

void forget_scalars(Work& work) {
  for (Scalar& scalar : work.scalars) {
    work.moved = work.moved || scalar.at.tensor != nullptr;
    scalar = {};
  }
}

// Other strides at the same addresses reach other memory.
void measure_extent(Work& work) {
  int64_t extent = 0;
  for (int k = 0; !work.dense && k < kMaxOperands; ++k) {
    const c10::TensorImpl* tensor = work.operands[k].tensor;
    if (k != kGrad && tensor != nullptr) extent += extent_of(*tensor) << k;
  }
  work.moved = work.moved || work.extent != extent;
  work.extent = extent;
}

bool is_real(const c10::TensorImpl& tensor) {
  const auto type = c10::typeMetaToScalarType(tensor.dtype());
  return c10::isFloatingType(type) || c10::isIntegralType(type, /*includeBool=*/true);
}

std::string state_name(const char* key) { return std::string(": state['") + key + "']"; }

// What a tensor's class makes of operators, or it alone.
const char* why_not_object(Reading& reading, PyObject* tensor) {
  if (const char* reason = why_not_class(reading, tensor)) return reason;
  return replaces_attribute(tensor) ? by_user(reading, kOwnAttribute) : nullptr;
}

// What a gradient's class makes of operators, if Python knows the gradient at all.
const char* why_not_wrapper(Reading& reading, const c10::TensorImpl& grad) {
  PyObject* wrapper = const_cast<c10::TensorImpl&>(grad).pyobj_slot()->load_pyobj();
  return wrapper == nullptr ? nullptr : why_not_object(reading, wrapper);
}

// The dtype of the gradient that torch's own step hands to lerp_.
c10::ScalarType lerped_type(const Variant& variant, const c10::TensorImpl* grad,
                            const c10::TensorImpl& param) {
  const auto type = c10::typeMetaToScalarType(param.dtype());
  if (grad == nullptr) return type;
  const auto other = c10::typeMetaToScalarType(grad->dtype());
  return variant.adds_parameter ? c10::promoteTypes(other, type) : other;
}

// Does torch's own step take a gradient of another dtype?
bool is_promoted(const Reading& reading, const Slot& slot, const c10::TensorImpl& grad,
                 const c10::TensorImpl& param) {
  const Variant& variant = reading.groups[slot.group].variant;
  if (!is_real(grad)) return false;
  if (variant.lerp < 0) return true;
  const char* key = reading.keys.optimizer->states[variant.keys[variant.lerp]].key;
  PyObject* value =
      slot.state != nullptr && PyDict_Check(slot.state) ? find_text(slot.state, key) : nullptr;
  const auto state = value != nullptr && is_tensor(value) ? impl_of(value).dtype() : param.dtype();
  return c10::typeMetaToScalarType(state) == lerped_type(variant, &grad, param);
}

// Notes that an operand has another dtype than the parameter. Can a kernel deal with it?
bool take_format(Work& work, int k, const c10::TensorImpl& tensor) {
  Dtype dtype;
  if (work.device != kHost || !to_dtype(tensor, dtype)) return false;
  work.mixed = true;
  work.formats[k] = dtype;
  return true;
}

const char* check_gradient(Reading& reading, const Slot& slot, const c10::TensorImpl& grad,
                           const c10::TensorImpl& param, Work& work) {
  if (grad.layout() != c10::kStrided) return "sparse gradient";
  const bool other_dtype = grad.dtype() != param.dtype() && !take_format(work, kGrad, grad);
  if ((other_dtype && !is_promoted(reading, slot, grad, param)) ||
      grad.device() != param.device() || !same_sizes(grad, param)) {
    throw std::runtime_error(name_of(reading, slot) + ": its gradient has " + describe(grad) +
                             ", expected " + describe(param));
  }
  if (other_dtype) return "its gradient has another dtype";
  const auto plain = plain_keys(param.device().type());
  if (!is_plain(grad, plain)) return "its gradient is not a plain tensor";
  return is_allocated(grad) ? nullptr : "its gradient's memory is not allocated";
}

// What doesn't fit at first sight: torch's own step may be able to deal with it, or nobody.
const char* check_state_tensor(Reading& reading, const Slot& slot, const char* key,
                               const c10::TensorImpl& tensor, int number, Work& work) {
  const c10::TensorImpl& param = *work.operands[kParam].tensor;
  const Variant& variant = reading.groups[slot.group].variant;
  const auto type = c10::typeMetaToScalarType(tensor.dtype());
  const bool dtype_fits = c10::isFloatingType(type) &&
                          (number != variant.lerp || tensor.dtype() == param.dtype() ||
                           type == lerped_type(variant, work.operands[kGrad].tensor, param));
  if (!dtype_fits || tensor.layout() != c10::kStrided || tensor.device() != param.device() ||
      !same_sizes(tensor, param) || is_expanded(tensor)) {
    throw std::runtime_error(name_of(reading, slot) + state_name(key) + " has " + describe(tensor) +
                             ", expected " + describe(param));
  }
  refuse_inference(reading, slot, state_name(key), tensor);
  if (tensor.dtype() != param.dtype() && !take_format(work, kFirstState + number, tensor)) {
    return "its state has another dtype";
  }
  const auto plain = plain_keys(param.device().type());
  if (!is_plain(tensor, plain)) return "its state is not a plain tensor";
  if (!is_allocated(tensor)) return "its state's memory is not allocated";
  return may_overlap_itself(tensor) ? "its state's elements may share memory" : nullptr;
}

// Has a state a key that isn't a str, but may equal one?
bool has_odd_key(PyObject* dict) {
  PyObject *key, *value;
  Py_ssize_t position = 0;
  while (PyDict_Next(dict, &position, &key, &value)) {
    if (!PyUnicode_CheckExact(key)) return true;
  }
  return false;
}

[[noreturn]] void throw_uncountable(const Reading& reading, const Slot& slot, size_t number,
                                    const c10::TensorImpl& scalar) {
  const char* expected = number == 0 ? ", expected one real number that can be counted up"
                                     : ", expected one floating-point number";
  throw std::runtime_error(name_of(reading, slot) +
                           state_name(reading.keys.optimizer->scalars[number].key) + " has " +
                           describe(scalar) + expected);
}

// Can a kernel's step write this number? The step count may also be an integer.
bool takes_number(size_t number, const c10::TensorImpl& tensor) {
  Dtype dtype;
  if (tensor.numel() != 1) return false;
  return number == 0 ? is_countable(c10::typeMetaToScalarType(tensor.dtype()))
                     : to_dtype(tensor, dtype);
}

// Can a device's kernel write this number? It counts steps in float32 and float64.
bool is_countable_on_device(size_t number, const c10::TensorImpl& tensor, int device) {
  Dtype dtype;
  return is_number_on_device(tensor, dtype) && tensor.device().index() == device &&
         (number != 0 || dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64);
}

// Checks the step count, number 0, or another single number of the state.
const char* check_scalar(Reading& reading, const Slot& slot, size_t number, PyObject* value,
                         Work& work) {
  const char* key = reading.keys.optimizer->scalars[number].key;
  if (value == nullptr && has_odd_key(slot.state)) return by_user(reading, kOddKey);
  if (value == nullptr) {
    throw py::key_error(name_of(reading, slot) + ": its state has no '" + key + "'");
  }
  if (!is_tensor(value)) return why_not_tensor(reading, slot, state_name(key), value);
  if (const char* reason = why_not_object(reading, value)) return reason;
  c10::TensorImpl& tensor = impl_of(value);
  if (tensor.key_set().has(c10::DispatchKey::Python)) {
    return by_user(reading, "a number of its state is a tensor subclass");
  }
  const Scalar scalar{operand_of(tensor), c10::typeMetaToScalarType(tensor.dtype()), false};
  Scalar& before = work.scalars[number];
  work.moved = work.moved || before.at.address != scalar.at.address || before.type != scalar.type;
  work.foreign = work.foreign || (scalar.at.storage != nullptr && !owns_memory(scalar.at));
  before = scalar;
  if (is_usual_number(tensor) && scalar.at.address != nullptr) return nullptr;
  if (!takes_number(number, tensor)) {
    const bool any = number == 0 && !reading.keys.optimizer->computes_with_step;
    if (any && (is_countable(scalar.type) || c10::isComplexType(scalar.type))) {
      return "its step count is no number";
    }
    throw_uncountable(reading, slot, number, tensor);
  }
  const bool on_device = work.device != kHost && tensor.device().type() == accelerator->type;
  const bool reached = on_device ? is_countable_on_device(number, tensor, work.device)
                                 : is_plain_cpu(tensor) && is_allocated(tensor);
  before.on_device = on_device && reached;
  work.any_on_device = work.any_on_device || before.on_device;
  if (on_device || reached) refuse_inference(reading, slot, state_name(key), tensor);
  return reached ? nullptr : "a number of its state is elsewhere";
}

const char* check_state(Reading& reading, const Slot& slot, const Shape& shape, Work& work) {
  const Keys& keys = reading.keys;
  const Variant& variant = reading.groups[slot.group].variant;
  const int states = variant.cpu->states;
  const size_t scalars = keys.optimizer->scalars.size();
  work.first = work.fresh = work.any_on_device = work.move_scalars = false;
  const auto forget = [&] {
    forget_operands(work, kFirstState);
    forget_scalars(work);
    return nullptr;
  };
  if (states == 0 && scalars == 0) return forget();
  if (slot.state != nullptr && !is_plain_dict(slot.state)) {
    if (is_data(slot.state)) {
      throw py::type_error(name_of(reading, slot) + ": its state must be a dict, got " +
                           Py_TYPE(slot.state)->tp_name);
    }
    return by_user(reading, "its state is not a plain dict");
  }
  if (slot.state == nullptr || PyDict_GET_SIZE(slot.state) == 0) {
    work.first = work.fresh = true;
    return forget();
  }
  PyObject** values = work.traces.state;
  const uint64_t version = version_of(slot.state);
  if (std::exchange(work.traces.version, version) != version || version == 0) {
    read_state(keys, slot.state, values);
  }
  if (scalars == 0) forget_scalars(work);
  for (size_t k = 0; k < scalars; ++k) {
    const char* reason = check_scalar(reading, slot, k, values[keys.scalar(k)], work);
    if (reason != nullptr) return reason;
  }
  for (int k = 0; k < states; ++k) {
    PyObject* value = values[variant.keys[k]];
    if (value == nullptr && has_odd_key(slot.state)) return by_user(reading, kOddKey);
    if (scalars == 0 && (value == nullptr || value == Py_None)) {
      work.first = work.fresh = true;
      return forget();
    }
    const char* key = keys.optimizer->states[variant.keys[k]].key;
    if (value == nullptr) {
      throw py::key_error(name_of(reading, slot) + ": its state has no '" + key +
                          "', which these options need");
    }
    if (!is_tensor(value)) return why_not_tensor(reading, slot, state_name(key), value);
    if (const char* reason = why_not_object(reading, value)) return reason;
    c10::TensorImpl* taken = &impl_of(value);
    if (work.cut != 0) {
      if (const char* reason = take_piece(reading, slot, key, value, work, taken)) return reason;
    }
    c10::TensorImpl& tensor = *taken;
    if (tensor.key_set().has(c10::DispatchKey::Python)) {
      return by_user(reading, "its state is a tensor subclass");
    }
    const Operand operand = operand_of(tensor);
    set_operand(work, kFirstState + k, operand.storage == nullptr ? Operand{} : operand);
    if (work.dense && fits(tensor, operand.address, shape)) continue;
    const c10::TensorImpl& param = *work.operands[kParam].tensor;
    const char* reason = check_state_tensor(reading, slot, key, tensor, k, work);
    if (reason != nullptr) return reason;
    work.dense = work.dense && same_strides(tensor, param);
  }
  forget_operands(work, kFirstState + states);
  return nullptr;
}

}  // namespace

void refuse_step(const Reading& reading, const Slot& slot) {
  if (!reading.keys.optimizer->counts_steps() || slot.state == nullptr ||
      !is_plain_dict(slot.state)) {
    return;
  }
  PyObject* step = find_text(slot.state, "step");
  if (step == nullptr || !is_exact(step)) return;
  const c10::TensorImpl& tensor = impl_of(step);
  const auto type = c10::typeMetaToScalarType(tensor.dtype());
  if (!is_countable(type) && !c10::isComplexType(type)) {
    throw_uncountable(reading, slot, 0, tensor);
  }
}

const char* check_slot(Reading& reading, const Slot& slot, c10::TensorImpl* grad, Work& work) {
  const Group& group = reading.groups[slot.group];
  if (group.torch_only != nullptr) return group.torch_only;
  c10::TensorImpl* taken = &impl_of(slot.param);
  work.traces.autograd = taken->autograd_meta();
  work.cut = 0;
  work.foreign = false;
  const Dtype dtype_before = work.dtype;
  if (replaces_attribute(slot.param)) return by_user(reading, kOwnAttribute);
  if (grad != nullptr) {
    if (const char* reason = why_not_wrapper(reading, *grad)) return reason;
  }
  if (taken->key_set() != kPlainKeys && is_dtensor(slot.param)) {
    if (const char* reason = take_pieces(reading, slot, work, taken, grad)) return reason;
  }
  c10::TensorImpl& param = *taken;
  work.device = kHost;
  if (param.key_set() != kPlainKeys || !is_allocated(param) || !to_dtype(param, work.dtype)) {
    if (const char* reason = why_not_covered(reading, param, work)) return reason;
  }
  const Operand operand = operand_of(param);
  const Shape shape(param, work.device);
  const bool dense = param.is_non_overlapping_and_dense();
  std::fill_n(work.formats, kMaxOperands, work.dtype);
  work.mixed = false;
  work.dense = dense;
  work.moved = work.moved || work.numel != param.numel() || work.dtype != dtype_before;
  work.numel = param.numel();
  set_operand(work, 0, operand);
  if (grad != nullptr) {
    if (grad->key_set().has(c10::DispatchKey::Python)) {
      return by_user(reading, "its gradient is a tensor subclass");
    }
    work.operands[kGrad] = operand_of(*grad);
    if (!fits(*grad, work.operands[kGrad].address, shape)) {
      if (const char* reason = check_gradient(reading, slot, *grad, param, work)) return reason;
      work.dense = dense && same_strides(*grad, param);
    }
  } else {
    work.operands[kGrad] = {};
  }
  if (param.key_set() != shape.keys) refuse_inference(reading, slot, "", param);
  if (!dense && is_expanded(param)) {
    throw std::runtime_error(name_of(reading, slot) +
                             ": more than one element of it refers to a single memory location; "
                             "expected a tensor that is not expanded, such as its clone()");
  }
  if (!dense && may_overlap_itself(param)) return "its elements may share memory";
  if (const char* reason = check_state(reading, slot, shape, work)) return reason;
  if (!work.dense || work.extent != 0) measure_extent(work);
  return work.device == kHost ? nullptr : check_device(reading, slot, work);
}

}  // namespace fusedopt
