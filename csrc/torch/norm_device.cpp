// Norms on the accelerator: reads tensors, takes memory there, and waits for nothing.
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cmath>

#include "torch/accelerator.h"
#include "torch/norm.h"
#include "torch/operand.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

bool is_covered_there(const at::Tensor& tensor, const c10::Device& device, Dtype& dtype) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  PyObject* wrapper = tensor.unsafeGetTensorImpl()->pyobj_slot()->load_pyobj();
  if (impl.key_set() != accelerator->plain || impl.device() != device) return false;
  if (wrapper != nullptr && !is_exact(wrapper)) return false;
  if (!to_dtype(impl, dtype) || dtype == Dtype::kFloat64) return false;
  return impl.is_non_overlapping_and_dense() && is_allocated(impl) &&
         cuda::is_aligned(address_of(impl), format_of(dtype));
}

Norm kind_of(double order) {
  if (order == 2) return Norm::kSquares;
  if (order == 1) return Norm::kMagnitudes;
  return order > 0 ? Norm::kLargest : Norm::kSmallest;
}

}  // namespace

at::Tensor norm_on_device(const std::vector<at::Tensor>& tensors, double order) {
  const bool known = order == 2 || order == 1 || std::isinf(order);
  if (accelerator->norm == nullptr || tensors.empty() || !known) return {};
  const c10::Device device = tensors.front().device();
  std::vector<NormEntry> entries;
  int64_t elements = 0, blocks = 0;
  for (const at::Tensor& tensor : tensors) {
    Dtype dtype;
    if (!is_covered_there(tensor, device, dtype)) return {};
    const int64_t numel = tensor.numel();
    if (numel == 0 && std::isinf(order)) return {};
    if (numel == 0) continue;
    entries.push_back({address_of(*tensor.unsafeGetTensorImpl()), elements, numel, blocks, dtype});
    elements += numel;
    blocks += norm_blocks(numel);
  }
  if (entries.empty()) return {};
  const c10::DeviceGuard guard(device);
  const auto options = at::TensorOptions().device(device);
  const at::Tensor total = at::empty({}, options.dtype(at::kFloat));
  const at::Tensor memory = at::empty({cuda::norm_memory(blocks)}, options.dtype(at::kDouble));
  const c10::impl::VirtualGuardImpl streams(accelerator->type);
  accelerator->norm(
      {kind_of(order), entries.data(), static_cast<int64_t>(entries.size()),
       static_cast<double*>(memory.data_ptr()), static_cast<float*>(total.data_ptr())},
      device.index(), streams.getStreamNativeHandle(streams.getStream(device)));
  return total;
}

}  // namespace fusedopt
