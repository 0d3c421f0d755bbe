// What a device's part of the table is made of, and handing it over: takes memory of devices before
// anything is changed.
#include "torch/launch.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>

#include "torch/accelerator.h"
#include "torch/device.h"

namespace fusedopt {

namespace {

// A rule's share of a device's memory. Each bucket's rules begin at a multiple of 16.
constexpr int64_t kAlignment = 16;
int64_t bytes_of(const Variant& variant, Dtype dtype) {
  return static_cast<int64_t>(variant.cpu->rule_bytes[cpu::Kernel::compute(dtype)]);
}

void* address_on(const Device& device, const c10::TensorImpl* tensor) {
  if (tensor == nullptr) return nullptr;
  for (const auto& [original, copy] : device.copies) {
    if (original == tensor) return copy.data_ptr();
  }
  return const_cast<char*>(address_of(*tensor));
}

}  // namespace

// Takes memory, which may fail: room for the rules that devices make, and copies of numbers that
// are on another device.
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
