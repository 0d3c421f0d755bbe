// Checking a parameter's state: the tensors of its size, and single numbers. Reads tensors, and
// runs no Python code.
#include <ATen/core/Tensor.h>

#include <stdexcept>

#include "torch/check.h"
#include "torch/count.h"
#include "torch/look.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

constexpr const char* kOddKey = "its state has keys that only equal the names";

std::string state_name(const char* key) { return std::string(": state['") + key + "']"; }

// Judges state that doesn't fit at first sight. Returns why torch's own step takes it, or null;
// throws if torch doesn't either.
const char* check_state_tensor(Reading& reading, const Slot& slot, const char* key,
                               const c10::TensorImpl& tensor, int number, Work& work) {
  const c10::TensorImpl& param = *work.operands[kParam].tensor;
  const Variant& variant = reading.groups[slot.group].variant;
  const auto type = c10::typeMetaToScalarType(tensor.dtype());
  const bool dtype_fits = c10::isFloatingType(type) &&
                          (number != variant.lerp || reading.groups[slot.group].precision.given ||
                           tensor.dtype() == param.dtype() ||
                           type == lerped_type(variant, work.operands[kGrad].tensor, param));
  if (!dtype_fits || tensor.layout() != c10::kStrided || tensor.device() != param.device() ||
      !same_sizes(tensor, param) || is_expanded(tensor)) {
    throw std::runtime_error(name_of(reading, slot) + state_name(key) + " has " + describe(tensor) +
                             ", expected " + describe(param));
  }
  refuse_inference(reading, slot, state_name(key), tensor);
  if (tensor.dtype() != param.dtype() &&
      !take_format(reading.groups[slot.group], work, kFirstState + number, tensor)) {
    return "its state has another dtype";
  }
  const auto plain = plain_keys(param.device().type());
  if (!is_plain(tensor, plain)) return "its state is not a plain tensor";
  if (!is_allocated(tensor)) return "its state's memory is not allocated";
  return may_overlap_itself(tensor) ? "its state's elements may share memory" : nullptr;
}

const char* scalar_key(const Keys& keys, size_t number) {
  return keys.optimizer->scalars.empty() ? kRoundings : keys.optimizer->scalars[number].key;
}

// The tensor under a key of the state, or the piece of it that is here.
FUSEDOPT_INLINE const char* take_tensor(Reading& reading, const Slot& slot, const char* key,
                                        PyObject* value, const Work& work,
                                        c10::TensorImpl*& tensor) {
  if (!is_tensor(value)) return why_not_tensor(reading, slot, state_name(key), value);
  if (const char* reason = why_not_object(reading, value)) return reason;
  tensor = &impl_of(value);
  if (work.cut != 0) {
    if (const char* reason = take_piece(reading, slot, key, value, work, tensor)) return reason;
  }
  return tensor->key_set().has(c10::DispatchKey::Python)
             ? by_user(reading, "its state is a tensor subclass")
             : nullptr;
}

// The lower halves of the parameter's float32, which are the last operand.
const char* check_remainder(Reading& reading, const Slot& slot, PyObject* value, int k,
                            Work& work) {
  c10::TensorImpl* taken = nullptr;
  if (const char* reason = take_tensor(reading, slot, kRemainder, value, work, taken)) {
    return reason;
  }
  const c10::TensorImpl& tensor = *taken;
  const c10::TensorImpl& param = *work.operands[kParam].tensor;
  if (tensor.dtype() != caffe2::TypeMeta::Make<int16_t>() || tensor.layout() != c10::kStrided ||
      tensor.device() != param.device() || !same_sizes(tensor, param) || is_expanded(tensor)) {
    throw std::runtime_error(name_of(reading, slot) + state_name(kRemainder) + " has " +
                             describe(tensor) + ", expected int16 and otherwise " +
                             describe(param));
  }
  refuse_inference(reading, slot, state_name(kRemainder), tensor);
  const Operand operand = operand_of(*taken);
  set_operand(work, k, operand.storage == nullptr ? Operand{} : operand);
  if (!is_plain(tensor, plain_keys(param.device().type())) || !is_allocated(tensor)) {
    return "its state is not a plain tensor";
  }
  if (may_overlap_itself(tensor)) return "its state's elements may share memory";
  work.dense = work.dense && same_strides(tensor, param);
  return nullptr;
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
  throw std::runtime_error(name_of(reading, slot) + state_name(scalar_key(reading.keys, number)) +
                           " has " + describe(scalar) + expected);
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
  const char* key = scalar_key(reading.keys, number);
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
  const Operand operand = operand_of(tensor);
  const auto type = c10::typeMetaToScalarType(tensor.dtype());
  const int at = reading.groups[slot.group].operands + static_cast<int>(number);
  work.moved = work.moved || work.operands[at].address != operand.address ||
               work.number_types[number] != type;
  work.foreign = work.foreign || (operand.storage != nullptr && !owns_memory(operand));
  work.operands[at] = operand;
  work.number_types[number] = type;
  if (is_usual_number(tensor) && operand.address != nullptr) return nullptr;
  if (!takes_number(number, tensor)) {
    const bool any = number == 0 && reading.keys.optimizer->counts_steps() &&
                     !reading.keys.optimizer->computes_with_step;
    if (any && (is_countable(type) || c10::isComplexType(type))) {
      return "its step count is no number";
    }
    throw_uncountable(reading, slot, number, tensor);
  }
  const bool on_device = work.device != kHost && tensor.device().type() == accelerator->type;
  const bool reached = on_device ? is_countable_on_device(number, tensor, work.device)
                                 : is_plain_cpu(tensor) && is_allocated(tensor);
  work.numbers_on_device[number] = on_device && reached;
  work.any_on_device = work.any_on_device || work.numbers_on_device[number];
  if (on_device || reached) refuse_inference(reading, slot, state_name(key), tensor);
  return reached ? nullptr : "a number of its state is elsewhere";
}

// The values of a state's dict, which are read again only where the dict has changed.
void read_values(const Keys& keys, PyObject* dict, Traces& traces) {
  if (!traces.dict.still(dict)) read_state(keys, dict, traces.state);
}

const char* check_numbers(Reading& reading, const Slot& slot, Work& work) {
  const size_t count = work.lacks_roundings ? 0 : reading.groups[slot.group].scalars;
  for (size_t k = 0; k < count; ++k) {
    PyObject* value = work.traces.state[reading.keys.scalar(k)];
    if (const char* reason = check_scalar(reading, slot, k, value, work)) return reason;
  }
  return nullptr;
}

// The tensors of the parameter's size. Without single numbers, one that is missing means that all
// state is fresh.
const char* check_state_tensors(Reading& reading, const Slot& slot, const Shape& shape,
                                Work& work) {
  const Optimizer& optimizer = *reading.keys.optimizer;
  const Variant& variant = reading.groups[slot.group].variant;
  for (int k = 0; k < variant.cpu->states; ++k) {
    PyObject* value = work.traces.state[variant.keys[k]];
    if (value == nullptr && has_odd_key(slot.state)) return by_user(reading, kOddKey);
    if (optimizer.scalars.empty() && (value == nullptr || value == Py_None)) {
      work.first = work.fresh = true;
      return nullptr;
    }
    const char* key = optimizer.states[variant.keys[k]].key;
    if (value == nullptr) {
      throw py::key_error(name_of(reading, slot) + ": its state has no '" + key +
                          "', which these options need");
    }
    c10::TensorImpl* taken = nullptr;
    if (const char* reason = take_tensor(reading, slot, key, value, work, taken)) return reason;
    c10::TensorImpl& tensor = *taken;
    const Operand operand = operand_of(tensor);
    set_operand(work, kFirstState + k, operand.storage == nullptr ? Operand{} : operand);
    if (work.dense && fits(tensor, operand.address, shape)) continue;
    const char* reason = check_state_tensor(reading, slot, key, tensor, k, work);
    if (reason != nullptr) return reason;
    work.dense = work.dense && same_strides(tensor, *work.operands[kParam].tensor);
  }
  return nullptr;
}

}  // namespace

const char* check_state(Reading& reading, const Slot& slot, const Shape& shape, Work& work) {
  const Keys& keys = reading.keys;
  const Group& group = reading.groups[slot.group];
  const bool roundings = group.precision.noisy && keys.optimizer->scalars.empty();
  work.first = work.fresh = work.any_on_device = work.move_scalars = false;
  work.lacks_remainder = work.lacks_roundings = false;
  std::fill(std::begin(work.numbers_on_device), std::end(work.numbers_on_device), false);
  if (group.held == kFirstState) {
    forget_operands(work, kFirstState);
    return nullptr;
  }
  if (slot.state != nullptr && !is_plain_dict(slot.state)) {
    if (is_data(slot.state)) {
      throw py::type_error(name_of(reading, slot) + ": its state must be a dict, got " +
                           Py_TYPE(slot.state)->tp_name);
    }
    return by_user(reading, "its state is not a plain dict");
  }
  const bool any = slot.state != nullptr && PyDict_GET_SIZE(slot.state) != 0;
  PyObject** values = work.traces.state;
  if (any) read_values(keys, slot.state, work.traces);
  const auto is_missing = [&](size_t entry) {
    return !any || values[entry] == nullptr || values[entry] == Py_None;
  };
  work.lacks_remainder = group.precision.master && is_missing(keys.remainder());
  work.lacks_roundings = roundings && is_missing(keys.scalar(0));
  work.first = work.fresh = !any;
  if (any) {
    if (const char* reason = check_numbers(reading, slot, work)) return reason;
    if (const char* reason = check_state_tensors(reading, slot, shape, work)) return reason;
  }
  if (work.fresh) {
    forget_operands(work, kFirstState);
    return nullptr;
  }
  forget_operands(work, work.lacks_roundings ? group.operands : group.held);
  if (!group.precision.master) return nullptr;
  const int last = group.operands - 1;
  if (!work.lacks_remainder) {
    return check_remainder(reading, slot, values[keys.remainder()], last, work);
  }
  set_operand(work, last, {});
  return nullptr;
}

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

}  // namespace fusedopt
