// The rarer questions to a tensor.
#include "torch/operand.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/InferenceMode.h>

#include <sstream>

#include "engine/layout.h"

namespace fusedopt {

Deleters deleters = {c10::GetCPUAllocator()->raw_deleter(), nullptr};

bool is_number_on_device(const c10::TensorImpl& tensor, Dtype& dtype) {
  return tensor.key_set() == accelerator->plain && tensor.numel() == 1 && is_allocated(tensor) &&
         to_dtype(tensor, dtype);
}

bool is_expanded(const c10::TensorImpl& tensor) {
  if (tensor.layout() != c10::kStrided || tensor.numel() == 0) return false;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1 && tensor.stride(d) == 0) return true;
  }
  return false;
}

bool may_overlap_itself(const c10::TensorImpl& tensor) {
  return !tensor.is_non_overlapping_and_dense() && tensor.numel() != 0 &&
         !is_injective(static_cast<int>(tensor.dim()), tensor.sizes().data(),
                       tensor.strides().data());
}

bool is_frozen_inference(const c10::TensorImpl& tensor) {
  // is_inference() isn't declared const.
  return const_cast<c10::TensorImpl&>(tensor).is_inference() && !c10::InferenceMode::is_enabled();
}

at::Tensor tensor_of(const c10::TensorImpl* impl) {
  return at::Tensor(
      c10::intrusive_ptr<c10::TensorImpl>::reclaim_copy(const_cast<c10::TensorImpl*>(impl)));
}

std::string why_not_this_torch() {
  // Made without the importing program's modes and inference mode.
  const c10::InferenceMode off(false);
  const at::Tensor fresh = at::detail::empty_cpu({2, 3}, at::kFloat);
  const c10::TensorImpl& tensor = *fresh.unsafeGetTensorImpl();
  if (tensor.key_set() != kPlainKeys) return "a plain tensor has other dispatch keys";
  const Operand operand = operand_of(*fresh.unsafeGetTensorImpl());
  if (operand.address != fresh.data_ptr()) return "a tensor's address is elsewhere";
  const auto before = fresh._version();
  count_version(operand);
  if (fresh._version() != before + 1) return "a tensor's version is counted elsewhere";
  return "";
}

std::string describe(const c10::TensorImpl& tensor) {
  std::ostringstream text;
  text << "shape " << tensor.sizes() << ", dtype " << c10::typeMetaToScalarType(tensor.dtype())
       << ", device " << tensor.device();
  if (tensor.layout() != c10::kStrided) text << ", layout " << tensor.layout();
  if (is_expanded(tensor)) text << ", expanded";
  return text.str();
}

}  // namespace fusedopt
