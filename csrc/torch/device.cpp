// Parameters on CUDA devices: which of them our kernels take, what stays on the device, and
// launching.
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <tuple>

#include "cuda/self_test.h"
#include "torch/plan.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

c10::Device place(int index) { return {accelerator->type, static_cast<c10::DeviceIndex>(index)}; }

#if defined(FUSEDOPT_WITH_CUDA)

std::string why_not(const Variant& variant, Dtype dtype, int device, void* stream) {
  static const char* const asked_for = std::getenv("FUSEDOPT_CUDA_KERNELS");
  if (asked_for != nullptr && std::strcmp(asked_for, "0") == 0) return "FUSEDOPT_CUDA_KERNELS=0";
  const c10::Device where(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
  const at::Tensor memory = at::empty({cuda::self_test_bytes(*variant.cuda)},
                                      at::TensorOptions().dtype(at::kByte).device(where));
  return cuda::self_test(*variant.cuda, *variant.cpu, dtype, memory.data_ptr(), device, stream);
}

void run(const Variant& variant, Dtype dtype, const Table& table, const cuda::Scalars& scalars,
         int device, void* stream) {
  cuda::run(*variant.cuda, dtype, table, scalars, device, stream);
}

#else

std::string why_not(const Variant&, Dtype, int, void*) { return "this build has no CUDA kernels"; }
void run(const Variant&, Dtype, const Table&, const cuda::Scalars&, int, void*) {}

#endif

const Accelerator kCuda = {
    c10::kCUDA,
    c10::DispatchKeySet({c10::DispatchKey::CUDA, c10::DispatchKey::AutogradCUDA,
                         c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::AutocastCUDA}),
    why_not,
#if defined(FUSEDOPT_WITH_CUDA)
    cuda::is_capturing,
#else
    [](void*) { return false; },
#endif
    run,
};

// Asked of each kernel once, and not while a graph is captured: null, if it isn't known yet then.
// The text stays where it is. Throws where memory is short, which it may not be next time.
const std::string* why_not_known(const Variant& variant, Dtype dtype, const Device& device) {
  using Key = std::tuple<const Accelerator*, const cpu::Kernel*, Dtype, int>;
  static std::map<Key, std::string> known;
  const Key key(accelerator, variant.cpu, dtype, device.index);
  const auto found = known.find(key);
  if (found != known.end()) return &found->second;
  if (device.capturing) return nullptr;
  const c10::DeviceGuard guard(place(device.index));
  std::string reason = accelerator->why_not(variant, dtype, device.index, device.stream);
  return &known.emplace(key, std::move(reason)).first->second;
}

// A rule's share of a device's memory. Each bucket's begins at a multiple of 16.
constexpr int64_t kAlignment = 16;
int64_t bytes_of(const Variant& variant, Dtype dtype) {
  return static_cast<int64_t>(variant.cpu->rule_bytes[cpu::Kernel::compute(dtype)]);
}

}  // namespace

const Accelerator* accelerator = &kCuda;

void set_accelerator(const Accelerator* other) { accelerator = other == nullptr ? &kCuda : other; }

Scaler Plan::read_scaler(const py::object& grad_scale, const py::object& found_inf) {
  const auto on_device = [](const py::object& value) -> const c10::TensorImpl* {
    if (!THPVariable_Check(value.ptr())) return nullptr;
    const c10::TensorImpl& tensor = *THPVariable_Unpack(value.ptr()).unsafeGetTensorImpl();
    Dtype dtype;
    return is_number_on_device(tensor, dtype) && dtype == Dtype::kFloat32 ? &tensor : nullptr;
  };
  Scaler scaler;
  scaler.scaled = !grad_scale.is_none();
  scaler.scale_at = on_device(grad_scale);
  scaler.found_inf_at = on_device(found_inf);
  if (scaler.scaled && scaler.scale_at == nullptr) {
    scaler.scale = to_number(grad_scale.ptr(), [] { return std::string("grad_scale"); });
  }
  if (!found_inf.is_none() && scaler.found_inf_at == nullptr) {
    scaler.overflow = to_number(found_inf.ptr(), [] { return std::string("found_inf"); }) != 0;
  }
  scaled_there_ = scaler.found_inf_at != nullptr;
  return scaler;
}

Device& Plan::device_of(int index) {
  for (Device& device : devices_) {
    if (device.index == index) return device;
  }
  const c10::DeviceGuard guard(place(index));
  const c10::impl::VirtualGuardImpl streams(accelerator->type);
  void* stream = streams.getStreamNativeHandle(streams.getStream(place(index)));
  devices_.push_back({index, stream, accelerator->is_capturing(stream), {}, 0, {}});
  return devices_.back();
}

// Why torch's own step takes a parameter on a device, or null.
const char* Plan::check_device(const Slot& slot, Work& work) {
  const Group& group = groups_[slot.group];
  const Device& device = device_of(work.device);
  const std::string* reason = why_not_known(group.variant, work.dtype, device);
  if (reason != nullptr && !reason->empty()) return reason->c_str();
  for (const Operand& operand : work.operands) {
    if (operand.tensor != nullptr && !cuda::is_aligned(operand.address, work.dtype)) {
      return "an address is no multiple of its element's size";
    }
  }
  const bool on_host = optimizer_->counts_steps && !work.device_step;
  work.move_step = on_host && !work.fresh && (group.capturable || scaled_there_);
  if (!device.capturing) return nullptr;
  if (group.has_capturable && !group.capturable) {
    throw std::runtime_error("Attempting CUDA graph capture of step() for an instance of " +
                             std::string(optimizer_->name) +
                             " but param_groups' capturable is False.");
  }
  if (work.fresh || work.move_step) {
    throw std::runtime_error(name_of(slot) + ": a CUDA graph can't hold the step that makes its " +
                             "state: take one step before the capture");
  }
  if (on_host) return "a CUDA graph is being captured";
  return reason == nullptr ? "a CUDA graph is being captured, and this kernel was never run before"
                           : nullptr;
}

// Waits for the device where the host can't do without its numbers: for parameters on the host, and
// for state whose being there tells that there was a step. Returns whether it has waited, which
// other threads have used, perhaps.
bool Plan::read_back(Scaler& scaler) {
  std::vector<std::pair<at::Tensor, double*>> numbers;
  const auto ask = [&](const c10::TensorImpl*& tensor, double& number) {
    if (tensor != nullptr) numbers.emplace_back(tensor_of(tensor), &number);
    tensor = nullptr;
  };
  const auto on_device = [](const Group& group) { return group.any_on_device; };
  if (scaler.scale_at == nullptr && scaler.found_inf_at == nullptr &&
      std::none_of(groups_.begin(), groups_.end(), on_device)) {
    return false;
  }
  const auto needs = [&](int slot) {
    const Work& work = works_[slot];
    return work.device == kHost || (work.fresh && !optimizer_->counts_steps);
  };
  double found_inf = scaler.overflow;
  if (std::any_of(ready_.begin(), ready_.end(), needs)) {
    ask(scaler.scale_at, scaler.scale);
    ask(scaler.found_inf_at, found_inf);
    scaled_there_ = false;
  }
  const Group* last = nullptr;
  for (const int slot : ready_) {
    Group& group = groups_[slots_[slot].group];
    if (&group == last || !group.any_on_device || works_[slot].device != kHost) continue;
    for (int i = 0; i < group.count; ++i) {
      const c10::TensorImpl* number = group.on_device[i];  // stays, for the group's others
      ask(number, group.numbers[i]);
    }
    last = &group;
  }
  if (numbers.empty()) return false;
  const py::gil_scoped_release release;
  for (const auto& [tensor, number] : numbers) *number = tensor.item().toDouble();
  scaler.overflow = found_inf != 0;
  return true;
}

// All that may fail for want of memory: room for the rules that devices make, and copies of numbers
// that are on another device.
void Plan::prepare_devices(const Scaler& scaler) {
  for (Device& device : devices_) {
    const c10::Device where = place(device.index);
    const auto copy = [&](const c10::TensorImpl* tensor) {
      if (tensor == nullptr || tensor->device() == where) return;
      const auto is_it = [&](const auto& known) { return known.first == tensor; };
      if (std::any_of(device.copies.begin(), device.copies.end(), is_it)) return;
      device.copies.emplace_back(tensor, tensor_of(tensor).to(where, /*non_blocking=*/true));
    };
    int64_t bytes = 0;
    const Group* last = nullptr;
    for (const int slot : ready_) {
      const Work& work = works_[slot];
      const Group& group = groups_[slots_[slot].group];
      if (work.device != device.index) continue;
      copy(scaler.scale_at);
      copy(scaler.found_inf_at);
      if (!work.device_step && !group.any_on_device) continue;
      bytes += bytes_of(group.variant, work.dtype) + kAlignment;
      for (int k = 0; &group != last && k < group.count; ++k) copy(group.on_device[k]);
      last = &group;
    }
    if (bytes == 0) continue;
    device.memory = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(where));
  }
}

void* Plan::address_on(Device& device, const c10::TensorImpl* tensor) const {
  if (tensor == nullptr) return nullptr;
  for (const auto& [original, copy] : device.copies) {
    if (original == tensor) return copy.data_ptr();
  }
  return const_cast<char*>(address_of(*tensor));
}

// What the rule of one parameter is made of, if the device makes it.
void Plan::add_source(const Work& work, int group_index, double step, Bucket& bucket) {
  const Group& group = groups_[group_index];
  Device& device = device_of(work.device);
  const auto options = static_cast<int>(bucket.variant.cpu->options);
  const bool same_group = bucket.group == group_index;
  if (same_group && !work.device_step && bucket.step == step) return;
  if (!same_group) {
    for (int i = 0; i < options; ++i) {
      cuda::Number number{group.numbers[i], address_on(device, group.on_device[i]), {}};
      if (number.address != nullptr) to_dtype(*group.on_device[i], number.dtype);
      bucket.numbers.push_back(number);
    }
  }
  const int32_t index = static_cast<int32_t>(bucket.numbers.size()) / options - 1;
  cuda::Number count{step, nullptr, {}};
  if (work.device_step) {
    count_version(work.step);
    count = {0, const_cast<char*>(work.step.address), work.step_dtype};
  }
  bucket.sources.push_back({index, count});
  ++bucket.rule_count;
  bucket.group = group_index;
  bucket.step = work.device_step ? -1 : step;
}

void Plan::launch(const Bucket& bucket, const Table& table, const Scaler& scaler) {
  Device& device = device_of(bucket.device);
  cuda::DeviceRules rules{bucket.numbers.data(), bucket.sources.data(),
                          static_cast<int64_t>(bucket.sources.size()), nullptr};
  cuda::Scalars scalars{static_cast<const float*>(address_on(device, scaler.found_inf_at)),
                        static_cast<const float*>(address_on(device, scaler.scale_at)), nullptr};
  if (bucket.made_there) {
    if (bucket.sources.empty()) return;
    rules.memory = static_cast<char*>(device.memory.data_ptr()) + device.used;
    const int64_t bytes = rules.count * bytes_of(bucket.variant, bucket.dtype);
    device.used += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    scalars.rules = &rules;
  } else if (table.count == 0) {
    return;
  }
  const c10::DeviceGuard guard(place(bucket.device));
  accelerator->run(bucket.variant, bucket.dtype, table, scalars, device.index, device.stream);
}

}  // namespace fusedopt
