// Checking one parameter and its gradient: can a kernel step it, and do its tensors fit? Reads
// tensors, and runs no Python code: a tensor whose class answers in Python is asked nothing but its
// keys.
#include "torch/check.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "torch/look.h"
#include "torch/originals.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

constexpr const char* kOwnAttribute = "an attribute of a tensor's own hides one of torch.Tensor's";

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

// Notes other strides, which reach other memory from the same addresses.
void measure_extent(int operands, Work& work) {
  int64_t extent = 0;
  for (int k = 0; !work.dense && k < operands; ++k) {
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

// why_not_object of a gradient, if Python knows the gradient at all.
const char* why_not_wrapper(Reading& reading, const c10::TensorImpl& grad) {
  PyObject* wrapper = const_cast<c10::TensorImpl&>(grad).pyobj_slot()->load_pyobj();
  return wrapper == nullptr ? nullptr : why_not_object(reading, wrapper);
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

const char* check_gradient(Reading& reading, const Slot& slot, const c10::TensorImpl& grad,
                           const c10::TensorImpl& param, Work& work) {
  if (grad.layout() != c10::kStrided) return "sparse gradient";
  const bool other_dtype =
      grad.dtype() != param.dtype() && !take_format(reading.groups[slot.group], work, kGrad, grad);
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

// Chooses the formats of a parameter, and of operands in the parameter's dtype.
void choose_formats(const Reading& reading, const Slot& slot, const c10::TensorImpl& param,
                    Work& work) {
  const Group& group = reading.groups[slot.group];
  const Precision& precision = group.precision;
  if (precision.master && work.dtype != Dtype::kBFloat16) {
    throw std::runtime_error(name_of(reading, slot) +
                             ": master_weights=True is for bfloat16, not " + describe(param));
  }
  if (precision.noisy && work.dtype == Dtype::kFloat16) {
    throw std::runtime_error(name_of(reading, slot) +
                             ": stochastic_rounding=True is for bfloat16, " + "not " +
                             describe(param));
  }
  std::fill_n(work.formats, kMaxOperands, stored_as(group, work.dtype));
  work.formats[kGrad] = format_of(work.dtype);
  if (precision.master) work.formats[kParam] = Format::kSplitFloat32;
  work.mixed = precision.master || work.formats[kParam] != work.formats[kGrad];
}

// Without a gradient, `grad` is null.
const char* take_gradient(Reading& reading, const Slot& slot, c10::TensorImpl* grad,
                          const Shape& shape, Work& work) {
  work.operands[kGrad] = {};
  if (grad == nullptr) return nullptr;
  if (grad->key_set().has(c10::DispatchKey::Python)) {
    return by_user(reading, "its gradient is a tensor subclass");
  }
  const Operand operand = operand_of(*grad);
  work.operands[kGrad] = operand;
  if (fits(*grad, operand.address, shape)) return nullptr;
  const c10::TensorImpl& param = *work.operands[kParam].tensor;
  if (const char* reason = check_gradient(reading, slot, *grad, param, work)) return reason;
  work.dense = work.dense && same_strides(*grad, param);
  return nullptr;
}

}  // namespace

void set_operand(Work& work, int k, const Operand& operand) {
  if (k != kGrad) {
    work.moved = work.moved || work.operands[k].address != operand.address;
    work.foreign = work.foreign || (operand.tensor != nullptr && !owns_memory(operand));
  }
  work.operands[k] = operand;
}

void forget_operands(Work& work, int from) {
  for (int k = from; k < kFirstState + kMaxEntries; ++k) {
    if (work.operands[k].tensor != nullptr) set_operand(work, k, {});
  }
}

Format stored_as(const Group& group, Dtype dtype) {
  return group.precision.noisy && dtype == Dtype::kBFloat16 ? Format::kNoisyBFloat16
                                                            : format_of(dtype);
}

bool take_format(const Group& group, Work& work, int k, const c10::TensorImpl& tensor) {
  Dtype dtype;
  if (!to_dtype(tensor, dtype)) return false;
  work.mixed = true;
  work.formats[k] = k == kGrad ? format_of(dtype) : stored_as(group, dtype);
  if (dtype == Dtype::kFloat64) work.dtype = dtype;  // computed in double, as torch promotes dtypes
  return true;
}

const char* why_not_object(Reading& reading, PyObject* tensor) {
  if (const char* reason = why_not_class(reading, tensor)) return reason;
  return replaces_attribute(tensor) ? by_user(reading, kOwnAttribute) : nullptr;
}

c10::ScalarType lerped_type(const Variant& variant, const c10::TensorImpl* grad,
                            const c10::TensorImpl& param) {
  const auto type = c10::typeMetaToScalarType(param.dtype());
  if (grad == nullptr) return type;
  const auto other = c10::typeMetaToScalarType(grad->dtype());
  return variant.adds_parameter ? c10::promoteTypes(other, type) : other;
}

const char* check_slot(Reading& reading, const Slot& slot, c10::TensorImpl* grad, Work& work) {
  const Group& group = reading.groups[slot.group];
  if (group.torch_only != nullptr) return group.torch_only;
  c10::TensorImpl* taken = &impl_of(slot.param);
  const auto* meta = static_cast<const torch::autograd::AutogradMeta*>(taken->autograd_meta());
  work.traces.grad = meta == nullptr ? nullptr : &meta->grad_;
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
  choose_formats(reading, slot, param, work);
  work.dense = dense;
  work.moved = work.moved || work.numel != param.numel() || work.dtype != dtype_before;
  work.numel = param.numel();
  set_operand(work, 0, operand);
  if (const char* reason = take_gradient(reading, slot, grad, shape, work)) return reason;
  if (param.key_set() != shape.keys) refuse_inference(reading, slot, "", param);
  if (!dense && is_expanded(param)) {
    throw std::runtime_error(name_of(reading, slot) +
                             ": more than one element of it refers to a single memory location; "
                             "expected a tensor that is not expanded, such as its clone()");
  }
  if (!dense && may_overlap_itself(param)) return "its elements may share memory";
  if (const char* reason = check_state(reading, slot, shape, work)) return reason;
  if (!work.dense || work.extent != 0) measure_extent(group.operands, work);
  return work.device == kHost ? nullptr : check_device(reading, slot, work);
}

}  // namespace fusedopt
