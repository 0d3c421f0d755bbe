// Most steps find every tensor of a parameter as the last step left it. These functions see that,
// with half the instructions that checking anew takes. Reads tensors only.
#include <ATen/core/Tensor.h>

#include "torch/look.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

caffe2::TypeMeta type_of(Format format) {
  switch (format) {
    case Format::kFloat32:
      return caffe2::TypeMeta::Make<float>();
    case Format::kFloat64:
      return caffe2::TypeMeta::Make<double>();
    case Format::kFloat16:
      return caffe2::TypeMeta::Make<at::Half>();
    default:
      return caffe2::TypeMeta::Make<at::BFloat16>();
  }
}

// Does a tensor lie where it lay, in memory of its own, and is its version counted in the same
// place?
FUSEDOPT_INLINE bool lies_as_before(const c10::TensorImpl& tensor, const Operand& before) {
  return &tensor == before.tensor &&
         tensor.unsafe_storage().unsafeGetStorageImpl() == before.storage &&
         version_counter_of(tensor) == before.version && owns_memory(before) &&
         address_of(tensor) == before.address;
}

FUSEDOPT_INLINE void prefetch_operand(const Operand& operand) {
  prefetch<16, sizeof(c10::TensorImpl)>(operand.tensor);
  prefetch<16, 62>(operand.storage);  // up to the flag that StorageImpl::data() reads
}

}  // namespace

// Of Python's objects a look reads the type and what follows; of torch's, what follows the
// reference count.
void prefetch_objects(const Group& group, const Slot& slot, const Work& last) {
  prefetch<8, 24>(slot.param);
  prefetch<8, sizeof(PyDictObject)>(slot.state);
  prefetch<0, 1>(last.traces.grad);
  prefetch_operand(last.operands[kParam]);
  prefetch_operand(last.operands[kGrad]);
  for (int k = kFirstState; k < group.held; ++k) {
    prefetch<8, 24>(last.traces.state[group.entries[k]]);
    prefetch_operand(last.operands[k]);
  }
}

// Would check_slot find what it found before, when all was as usual: plain tensors of the host in
// one dense layout, in memory of their own? Only the gradient may be another tensor, as it is after
// each backward pass. check_slot judges whatever differs.
bool is_unchanged(const Group& group, const Slot& slot, c10::TensorImpl& grad, Work& work) {
  if (work.usual_way != group.way || group.way == 0) return false;
  const c10::TensorImpl& param = impl_of(slot.param);
  if (!lies_as_before(param, work.operands[kParam]) || param.key_set() != kPlainKeys ||
      param.dtype() != work.usual_type || param.numel() != work.numel ||
      !param.is_non_overlapping_and_dense()) {
    return false;
  }
  Shape shape(param, kHost);
  PyObject* wrapper = grad.pyobj_slot()->load_pyobj();
  if (grad.key_set() != kPlainKeys || (wrapper != nullptr && !is_exact(wrapper))) {
    return false;
  }
  const Operand gradient = operand_of(grad);
  const bool mixed = work.mixed;
  if (mixed) shape.dtype = type_of(work.formats[kGrad]);
  if (!fits(grad, gradient.address, shape)) return false;
  const int held = group.held;
  const int operands = group.operands;
  if (held != kFirstState) {
    if (!work.traces.dict.is_of(slot.state)) return false;
    PyObject* const* values = work.traces.state;
    for (int k = operands; k < held; ++k) {
      PyObject* value = values[group.entries[k]];
      const c10::TensorImpl& number = impl_of(value);
      if (!is_exact(value) || !lies_as_before(number, work.operands[k]) ||
          number.key_set() != kPlainKeys || number.numel() != 1 ||
          c10::typeMetaToScalarType(number.dtype()) != work.number_types[k - operands]) {
        return false;
      }
    }
    for (int k = kFirstState; k < operands; ++k) {
      PyObject* value = values[group.entries[k]];
      const c10::TensorImpl& tensor = impl_of(value);
      const Operand& before = work.operands[k];
      if (mixed) {
        shape.dtype =
            is_remainder(group, k) ? caffe2::TypeMeta::Make<int16_t>() : type_of(work.formats[k]);
      }
      if (!is_exact(value) || !lies_as_before(tensor, before) ||
          !fits(tensor, before.address, shape)) {
        return false;
      }
    }
  }
  work.operands[kGrad] = gradient;
  return true;
}

bool is_usual(const Reading& reading, const Slot& slot, const Work& work) {
  const Group& group = reading.groups[slot.group];
  if (!work.ready || !work.dense || work.device != kHost || work.cut != 0 || work.first ||
      work.foreign || work.operands[kParam].tensor->key_set() != kPlainKeys ||
      work.operands[kGrad].tensor == nullptr || work.numel == 0 || work.lacks_remainder ||
      work.lacks_roundings) {
    return false;
  }
  for (int k = kFirstState; k < group.held; ++k) {
    if (!is_exact(work.traces.state[group.entries[k]])) return false;
    if (k >= group.operands && !is_usual_number(*work.operands[k].tensor)) return false;
  }
  return true;
}

}  // namespace fusedopt
