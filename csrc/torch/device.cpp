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
#include "torch/build.h"
#include "torch/launch.h"
#include "torch/look.h"
#include "torch/python.h"
#include "torch/satisfy.h"

namespace fusedopt {

namespace {

c10::Device place(int index) { return {accelerator->type, static_cast<c10::DeviceIndex>(index)}; }

#if defined(FUSEDOPT_WITH_CUDA)

std::string why_not(const Variant& variant, Dtype dtype, bool mixed, int device, void* stream) {
  static const char* const asked_for = std::getenv("FUSEDOPT_CUDA_KERNELS");
  if (asked_for != nullptr && std::strcmp(asked_for, "0") == 0) return "FUSEDOPT_CUDA_KERNELS=0";
  const c10::Device where(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
  const at::Tensor memory = at::empty({cuda::self_test_bytes(*variant.cuda)},
                                      at::TensorOptions().dtype(at::kByte).device(where));
  return cuda::self_test(*variant.cuda, *variant.cpu, dtype, mixed, memory.data_ptr(), device,
                         stream);
}

void run(const Variant& variant, Dtype dtype, const Table& table, const cuda::Scalars& scalars,
         int device, void* stream) {
  cuda::run(*variant.cuda, dtype, table, scalars, device, stream);
}

#else

std::string why_not(const Variant&, Dtype, bool, int, void*) {
  return "this build has no CUDA kernels";
}
void run(const Variant&, Dtype, const Table&, const cuda::Scalars&, int, void*) {}

#endif

const Accelerator kCuda = {
    c10::kCUDA,
    c10::DispatchKeySet({c10::DispatchKey::CUDA, c10::DispatchKey::AutogradCUDA,
                         c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::AutocastCUDA}),
    why_not,
#if defined(FUSEDOPT_WITH_CUDA)
    cuda::is_capturing,
    run,
    cuda::norm,
#else
    [](void*) { return false; },
    run,
    nullptr,
#endif
};

// Why a kernel can't run on a device, as far as that was tried. The texts stay where they are.
using Known =
    std::map<std::tuple<const Accelerator*, const cpu::Kernel*, Dtype, bool, int>, std::string>;
Known& known() {
  static auto* const all = new Known;
  return *all;
}
Known::key_type key_of(const Untried& kernel) {
  return {accelerator, kernel.variant.cpu, kernel.dtype, kernel.mixed, kernel.device};
}

// A rule's share of a device's memory. Each bucket's begins at a multiple of 16.
constexpr int64_t kAlignment = 16;
int64_t bytes_of(const Variant& variant, Dtype dtype) {
  return static_cast<int64_t>(variant.cpu->rule_bytes[cpu::Kernel::compute(dtype)]);
}

Device& device_of(std::vector<Device>& devices, int index) {
  for (Device& device : devices) {
    if (device.index == index) return device;
  }
  const c10::DeviceGuard guard(place(index));
  const c10::impl::VirtualGuardImpl streams(accelerator->type);
  void* stream = streams.getStreamNativeHandle(streams.getStream(place(index)));
  devices.push_back({index, stream, accelerator->is_capturing(stream), {}, 0, {}});
  return devices.back();
}

const Device& device_of(const std::vector<Device>& devices, int index) {
  return *std::find_if(devices.begin(), devices.end(),
                       [&](const Device& device) { return device.index == index; });
}

void* address_on(const Device& device, const c10::TensorImpl* tensor) {
  if (tensor == nullptr) return nullptr;
  for (const auto& [original, copy] : device.copies) {
    if (original == tensor) return copy.data_ptr();
  }
  return const_cast<char*>(address_of(*tensor));
}

// Does a kernel's step on the host need numbers that are on a device? Also for state whose being
// there tells that there was a step.
bool needs_numbers(const Reading& reading, const Slot& slot, const Work& work) {
  const bool on_host = work.device == kHost;
  const bool scaler = reading.scaler.scale_at != nullptr || reading.scaler.found_inf_at != nullptr;
  return (on_host && reading.groups[slot.group].any_on_device && !reading.waited) ||
         (on_host && reading.scaler.clip_at != nullptr) ||
         (scaler && (on_host || (work.fresh && !reading.keys.optimizer->counts_steps())));
}

}  // namespace

const Accelerator* accelerator = &kCuda;

void set_accelerator(const Accelerator* other) {
  accelerator = other == nullptr ? &kCuda : other;
  deleters.device = nullptr;
}

void try_kernel(const Untried& kernel) {
  const c10::DeviceGuard guard(place(kernel.device));
  std::vector<Device> devices;
  const Device& device = device_of(devices, kernel.device);
  std::string reason =
      accelerator->why_not(kernel.variant, kernel.dtype, kernel.mixed, device.index, device.stream);
  known().emplace(key_of(kernel), std::move(reason));
}

void read_back(Scaler& scaler) {
  double found_inf = scaler.overflow;
  const auto fetch = [](const c10::TensorImpl*& at, double& number) {
    if (at != nullptr) number = tensor_of(at).item().toDouble();
    at = nullptr;
  };
  const py::gil_scoped_release release;
  fetch(scaler.scale_at, scaler.scale);
  fetch(scaler.found_inf_at, found_inf);
  fetch(scaler.clip_at, scaler.clip);
  scaler.overflow = found_inf != 0;
}

Scaler read_scaler(const py::object& grad_scale, const py::object& found_inf,
                   const py::object& clip) {
  const auto on_device = [](const py::object& value, Dtype expected) -> const c10::TensorImpl* {
    if (!is_tensor(value.ptr())) return nullptr;
    const c10::TensorImpl& tensor = impl_of(value.ptr());
    Dtype dtype;
    return is_number_on_device(tensor, dtype) && dtype == expected ? &tensor : nullptr;
  };
  Scaler scaler;
  scaler.clip_at = on_device(clip, Dtype::kFloat64);
  // Another tensor is one whose value nobody may ask for: then torch steps all.
  if (!clip.is_none() && !is_tensor(clip.ptr())) {
    scaler.clip = to_number(clip.ptr(), [] { return std::string("max_grad_norm"); });
  }
  scaler.scaled = !grad_scale.is_none();
  scaler.scale_at = on_device(grad_scale, Dtype::kFloat32);
  scaler.found_inf_at = on_device(found_inf, Dtype::kFloat32);
  if (scaler.scaled && scaler.scale_at == nullptr) {
    scaler.scale = to_number(grad_scale.ptr(), [] { return std::string("grad_scale"); });
  }
  if (!found_inf.is_none() && scaler.found_inf_at == nullptr) {
    scaler.overflow = to_number(found_inf.ptr(), [] { return std::string("found_inf"); }) != 0;
  }
  return scaler;
}

// The host counts alone what it has all numbers for.
bool counts_on_device(const Reading& reading, const Group& group, const Work& work) {
  return group.capturable || reading.scaler.found_inf_at != nullptr ||
         (reading.keys.optimizer->scalars.size() > 1 &&
          (work.any_on_device || group.any_on_device));
}

void find_needed_numbers(Reading& reading) {
  const auto on_device = [](const Group& group) { return group.any_on_device; };
  const Scaler& scaler = reading.scaler;
  if (scaler.scale_at == nullptr && scaler.found_inf_at == nullptr && scaler.clip_at == nullptr &&
      std::none_of(reading.groups.begin(), reading.groups.end(), on_device)) {
    return;
  }
  for (const int slot : reading.ready) {
    if (needs_numbers(reading, reading.slots()[slot], reading.works()[slot])) {
      reading.needs.numbers = true;
      return;
    }
  }
}

const char* check_device(Reading& reading, const Slot& slot, Work& work) {
  const Group& group = reading.groups[slot.group];
  if (deleters.device == nullptr) {
    deleters.device = c10::GetAllocator(accelerator->type)->raw_deleter();
  }
  const Device& device = device_of(reading.devices, work.device);
  if (work.mixed && work.dtype == Dtype::kFloat64) return "float64 and another dtype";
  const Untried kernel{group.variant, work.dtype, work.mixed, work.device};
  const auto found = known().find(key_of(kernel));
  const bool tried = found != known().end();
  if (tried && !found->second.empty()) return found->second.c_str();
  if (!tried && !device.capturing) {
    reading.needs.kernels.push_back(kernel);
    return "its kernel is to be tried";
  }
  for (int k = 0; k < group.operands; ++k) {
    const Operand& operand = work.operands[k];
    if (operand.tensor != nullptr && !cuda::is_aligned(operand.address, work.formats[k])) {
      return "an address is no multiple of its element's size";
    }
  }
  const bool* numbers = work.numbers_on_device;
  const bool any_on_host = std::count(numbers, numbers + group.scalars, false) != 0;
  work.move_scalars =
      any_on_host && !work.fresh && !work.lacks_roundings && counts_on_device(reading, group, work);
  if (!device.capturing) return nullptr;
  if (group.has_capturable && !group.capturable) {
    throw std::runtime_error("Attempting CUDA graph capture of step() for an instance of " +
                             std::string(reading.keys.optimizer->name) +
                             " but param_groups' capturable is False.");
  }
  if (work.fresh || work.lacks_remainder || work.lacks_roundings || work.move_scalars) {
    throw std::runtime_error(name_of(reading, slot) + ": a CUDA graph can't hold the step that " +
                             "makes its state: take one step before the capture");
  }
  if (any_on_host) return "a CUDA graph is being captured";
  return tried ? nullptr : "a CUDA graph is being captured, and this kernel was never run before";
}

// All that may fail for want of memory: room for the rules that devices make, and copies of numbers
// that are on another device.
void prepare_devices(Reading& reading) {
  for (Device& device : reading.devices) {
    const c10::Device where = place(device.index);
    const auto copy = [&](const c10::TensorImpl* tensor) {
      if (tensor == nullptr || tensor->device() == where) return;
      const auto is_it = [&](const auto& known) { return known.first == tensor; };
      if (std::any_of(device.copies.begin(), device.copies.end(), is_it)) return;
      device.copies.emplace_back(tensor, tensor_of(tensor).to(where, /*non_blocking=*/true));
    };
    int64_t bytes = 0;
    const int numbers = reading.keys.optimizer->numbers;
    const Group* last = nullptr;
    for (const int slot : reading.ready) {
      const Work& work = reading.works()[slot];
      const Group& group = reading.group_of(slot);
      if (work.device != device.index) continue;
      copy(reading.scaler.scale_at);
      copy(reading.scaler.found_inf_at);
      copy(reading.scaler.clip_at);
      if (!work.any_on_device && !group.any_on_device) continue;
      bytes += bytes_of(group.variant, work.dtype) + kAlignment + int64_t(sizeof(uint64_t));
      for (int k = 0; &group != last && k < numbers; ++k) copy(group.on_device[k]);
      last = &group;
    }
    if (bytes == 0) continue;
    device.memory = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(where));
  }
}

void add_source(const Reading& reading, int slot, double step, double rounding, Bucket& bucket) {
  const Work& work = reading.works()[slot];
  const int group_index = reading.slots()[slot].group;
  const Group& group = reading.groups[group_index];
  const Device& device = device_of(reading.devices, work.device);
  const auto options = static_cast<int>(bucket.variant.cpu->options);
  const bool same_group = bucket.group == group_index;
  if (same_group && !work.any_on_device && !bucket.work->any_on_device &&
      bucket.counts.step == step && bucket.rounding == rounding) {
    return;
  }
  if (!same_group) {
    for (int i = 0; i < options; ++i) {
      cuda::Number number{group.numbers[i], address_on(device, group.on_device[i]), {}};
      if (number.address != nullptr) to_dtype(*group.on_device[i], number.dtype);
      bucket.numbers.push_back(number);
    }
  }
  const int32_t index = static_cast<int32_t>(bucket.numbers.size()) / options - 1;
  const bool counts = reading.keys.optimizer->counts_steps();
  const auto number = [&](size_t k, double on_host) {
    cuda::Number number{on_host, nullptr, {}};
    if (k >= group.scalars || !work.numbers_on_device[k]) return number;
    const Operand& operand = work.operands[group.operands + k];
    number.address = const_cast<char*>(operand.address);
    to_dtype(*operand.tensor, number.dtype);
    return number;
  };
  cuda::RuleSource& source = bucket.sources.emplace_back();
  source.group = index;
  source.step = counts ? number(0, step) : cuda::Number{step, nullptr, {}};
  source.seed = group.precision.seed;
  if (!counts) source.roundings = number(0, rounding);
  for (int k = 0; k < kMaxScalars; ++k) source.scalars[k] = number(1 + k, 0);
  ++bucket.rule_count;
  bucket.group = group_index;
  bucket.work = &work;
  bucket.counts = Counts{step};
  bucket.rounding = rounding;
}

void launch(Reading& reading, const Bucket& bucket, const Table& table) {
  Device& device = device_of(reading.devices, bucket.device);
  const Scaler& scaler = reading.scaler;
  cuda::DeviceRules rules{bucket.numbers.data(), bucket.sources.data(),
                          static_cast<int64_t>(bucket.sources.size()), nullptr};
  const auto is_rounded = [&](const cuda::RuleSource& source) {
    return bucket.noisy || source.roundings.address != nullptr;
  };
  cuda::Scalars scalars{static_cast<const float*>(address_on(device, scaler.found_inf_at)),
                        static_cast<const float*>(address_on(device, scaler.scale_at)), nullptr,
                        static_cast<const double*>(address_on(device, scaler.clip_at))};
  if (bucket.rules_on_device) {
    if (bucket.sources.empty()) return;
    rules.memory = static_cast<char*>(device.memory.data_ptr()) + device.used;
    const int64_t bytes = rules.count * bytes_of(bucket.variant, bucket.dtype);
    device.used += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (bucket.noisy) {
      rules.keys =
          reinterpret_cast<uint64_t*>(static_cast<char*>(device.memory.data_ptr()) + device.used);
      device.used += (rules.count * 8 + kAlignment - 1) / kAlignment * kAlignment;
    }
    rules.roundings = !reading.keys.optimizer->counts_steps() &&
                      std::any_of(bucket.sources.begin(), bucket.sources.end(), is_rounded);
    scalars.rules = &rules;
  } else if (table.count == 0) {
    return;
  }
  const c10::DeviceGuard guard(place(bucket.device));
  accelerator->run(bucket.variant, bucket.dtype, table, scalars, device.index, device.stream);
}

}  // namespace fusedopt
