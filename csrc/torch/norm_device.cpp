// Norms on the accelerator: reads tensors, takes memory there, and waits for nothing
// but its first trial.
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "torch/accelerator.h"
#include "torch/norm.h"
#include "torch/operand.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

bool is_covered_on(const at::Tensor& tensor, const c10::Device& device, Dtype& dtype) {
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

at::Tensor launch_norm(const std::vector<at::Tensor>& tensors, double order) {
  const c10::Device device = tensors.front().device();
  std::vector<NormEntry> entries;
  int64_t elements = 0, blocks = 0;
  for (const at::Tensor& tensor : tensors) {
    Dtype dtype;
    if (!is_covered_on(tensor, device, dtype)) return {};
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

// Has the device the CPU's bits? Waits for the device.
bool has_the_cpus_bits(const c10::Device& device) {
  const c10::InferenceMode off(false);  // whose tensors have other keys
  std::vector<at::Tensor> on_host, on_device;
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    at::Tensor values = at::detail::empty_cpu({kNormBlock + 37}, at::kFloat);
    auto* numbers = static_cast<float*>(values.data_ptr());
    for (int64_t i = 0; i < values.numel(); ++i) {
      numbers[i] = static_cast<float>(i * 7919 % 1009 - 500) / 37.0f;
    }
    on_host.push_back(values.to(type));
    on_device.push_back(on_host.back().to(device));
  }
  for (const double order : {2.0, 1.0, double(INFINITY), -double(INFINITY)}) {
    NormOf norm;
    for (const at::Tensor& tensor : on_host) {
      Dtype dtype{};
      to_dtype(*tensor.unsafeGetTensorImpl(), dtype);
      norm.add(*tensor.unsafeGetTensorImpl(), dtype);
    }
    const at::Tensor found = launch_norm(on_device, order);
    if (!found.defined() || found.item<float>() != static_cast<float>(norm.total(order))) {
      return false;
    }
  }
  return true;
}

// Tried once per device, as the optimizers' kernels are, and not while a graph is captured.
bool is_proven(const c10::Device& device) {
  static auto* const proven = new std::map<std::pair<const Accelerator*, int>, bool>;
  static const char* const asked_for = std::getenv("FUSEDOPT_CUDA_KERNELS");
  if (asked_for != nullptr && std::strcmp(asked_for, "0") == 0) return false;
  const std::pair key(accelerator, static_cast<int>(device.index()));
  const auto found = proven->find(key);
  if (found != proven->end()) return found->second;
  const c10::impl::VirtualGuardImpl streams(accelerator->type);
  if (accelerator->is_capturing(streams.getStreamNativeHandle(streams.getStream(device)))) {
    return false;
  }
  bool same = false;
  try {
    same = has_the_cpus_bits(device);
  } catch (const std::exception&) {  // the kernel isn't for this device
  }
  return (*proven)[key] = same;
}

}  // namespace

at::Tensor norm_on_device(const std::vector<at::Tensor>& tensors, double order) {
  const bool known = order == 2 || order == 1 || std::isinf(order);
  if (accelerator->norm == nullptr || tensors.empty() || !known) return {};
  const c10::Device device = tensors.front().device();
  return device.type() == accelerator->type && is_proven(device) ? launch_norm(tensors, order)
                                                                 : at::Tensor();
}

}  // namespace fusedopt
