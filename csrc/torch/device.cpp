// Parameters on CUDA devices: which of them our kernels take, and what stays on the device. Reads
// tensors, and notes needs; only try_kernel, which satisfies one, runs anything.
#include "torch/device.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "torch/accelerator.h"
#include "torch/look.h"
#include "torch/python.h"
#include "torch/satisfy.h"

namespace fusedopt {

namespace {

// Why kernels that were tried can't run on a device; empty: they can. The texts stay where they
// are.
using Known =
    std::map<std::tuple<const Accelerator*, const cpu::Kernel*, Dtype, bool, int>, std::string>;
Known& known() {
  static auto* const all = new Known;
  return *all;
}
Known::key_type key_of(const Untried& kernel) {
  return {accelerator, kernel.variant.cpu, kernel.dtype, kernel.mixed, kernel.device};
}

// Must the host know numbers on a device, to step a slot? Also where new state tells that there was
// a step, because a step that is skipped must not make any.
bool needs_numbers(const Reading& reading, const Slot& slot, const Work& work) {
  const bool on_host = work.device == kHost;
  const bool scaler = reading.scaler.scale_at != nullptr || reading.scaler.found_inf_at != nullptr;
  return (on_host && reading.groups[slot.group].any_on_device && !reading.waited) ||
         (on_host && reading.scaler.clip_at != nullptr) ||
         (scaler && (on_host || (work.fresh && !reading.keys.optimizer->counts_steps())));
}

}  // namespace

c10::Device place(int index) { return {accelerator->type, static_cast<c10::DeviceIndex>(index)}; }

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

void try_kernel(const Untried& kernel) {
  const c10::DeviceGuard guard(place(kernel.device));
  std::vector<Device> devices;
  const Device& device = device_of(devices, kernel.device);
  std::string reason =
      accelerator->why_not(kernel.variant, kernel.dtype, kernel.mixed, device.index, device.stream);
  known().emplace(key_of(kernel), std::move(reason));
}

// The host counts where it has all numbers.
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

}  // namespace fusedopt
