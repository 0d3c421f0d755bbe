// Counting: writes step counts and versions, reads nothing but the reading, and can't fail.
#include "torch/count.h"

#include <cstring>

#include "engine/tuning.h"

namespace fusedopt {

namespace {

template <typename T>
T value_at(const char* address) {
  T value;
  std::memcpy(&value, address, sizeof value);
  return value;
}

template <Dtype kDtype>
double next_rounded(const char* address) {
  using S = Storage<kDtype>;
  return S::load(S::store(S::load(value_at<uint16_t>(address)) + 1.0f));
}

// Integers wrap around, as torch's do.
template <typename T>
double next_integer(const char* address) {
  return static_cast<double>(
      static_cast<T>(static_cast<uint64_t>(value_at<T>(address)) + uint64_t{1}));
}

template <typename T>
void write(const Work& work, T value) {
  std::memcpy(const_cast<char*>(work.step.address), &value, sizeof value);
}

// Any count but the usual ones.
__attribute__((noinline)) double next_unusual(const Work& work) {
  const char* at = work.step.address;
  switch (work.step_type) {
    case c10::ScalarType::BFloat16:
      return next_rounded<Dtype::kBFloat16>(at);
    case c10::ScalarType::Half:
      return next_rounded<Dtype::kFloat16>(at);
    case c10::ScalarType::Byte:
      return next_integer<uint8_t>(at);
    case c10::ScalarType::Char:
      return next_integer<int8_t>(at);
    case c10::ScalarType::Short:
      return next_integer<int16_t>(at);
    case c10::ScalarType::Int:
      return next_integer<int32_t>(at);
    default:
      return next_integer<int64_t>(at);
  }
}

__attribute__((noinline)) void count_unusual(const Work& work) {
  const double next = next_unusual(work);
  switch (work.step_type) {
    case c10::ScalarType::BFloat16:
      return write(work, Storage<Dtype::kBFloat16>::store(static_cast<float>(next)));
    case c10::ScalarType::Half:
      return write(work, Storage<Dtype::kFloat16>::store(static_cast<float>(next)));
    case c10::ScalarType::Byte:
      return write(work, static_cast<uint8_t>(next));
    case c10::ScalarType::Char:
      return write(work, static_cast<int8_t>(next));
    case c10::ScalarType::Short:
      return write(work, static_cast<int16_t>(next));
    case c10::ScalarType::Int:
      return write(work, static_cast<int32_t>(next));
    default:
      return write(work, static_cast<int64_t>(
                             static_cast<uint64_t>(value_at<int64_t>(work.step.address)) + 1));
  }
}

FUSEDOPT_INLINE void count_step(const Work& work) {
  count_version(work.step);
  if (work.step_type == c10::ScalarType::Float) {
    write(work, value_at<float>(work.step.address) + 1.0f);
  } else if (work.step_type == c10::ScalarType::Double) {
    write(work, value_at<double>(work.step.address) + 1.0);
  } else {
    count_unusual(work);
  }
}

// The versions that count up are the DTensor's own, as torch's operators count them, and not its
// pieces'.
void count_versions_of_whole(const Reading& reading, int index, int operands, bool scaled) {
  const Slot& slot = reading.slots()[index];
  const Work& work = reading.works()[index];
  const auto& keys = reading.groups[slot.group].variant.keys;
  const at::Tensor& param = THPVariable_Unpack(slot.param);
  for (int k = 0; k < operands; ++k) {
    if (k == 1 && !scaled) continue;
    const at::Tensor& whole = k == 0   ? param
                              : k == 1 ? param.unsafeGetTensorImpl()->grad()
                                       : THPVariable_Unpack(work.traces.state[keys[k - 2]]);
    whole.unsafeGetTensorImpl()->bump_version();
  }
}

// What counting reads and writes of a slot.
void prefetch_counters(const Work& work) {
  for (const Operand& operand : work.operands) prefetch<0, 1, true>(operand.version);
  prefetch<0, 1, true>(work.step.version);
}

}  // namespace

bool is_countable(c10::ScalarType type) {
  switch (type) {
    case c10::ScalarType::Float:
    case c10::ScalarType::Double:
    case c10::ScalarType::BFloat16:
    case c10::ScalarType::Half:
    case c10::ScalarType::Byte:
    case c10::ScalarType::Char:
    case c10::ScalarType::Short:
    case c10::ScalarType::Int:
    case c10::ScalarType::Long:
      return true;
    default:
      return false;
  }
}

double next_count(const Work& work) {
  if (work.step_type == c10::ScalarType::Float) return value_at<float>(work.step.address) + 1.0f;
  if (work.step_type == c10::ScalarType::Double) return value_at<double>(work.step.address) + 1.0;
  return next_unusual(work);
}

void count(const Reading& reading) {
  const bool scaled = reading.scaler.scaled;
  const bool counts_steps = reading.keys.optimizer->counts_steps;
  const std::vector<int>& ready = reading.ready;
  const Slot* slots = reading.slots().data();
  const Work* works = reading.works().data();
  for (size_t i = 0; i < ready.size(); ++i) {
    if (i + kFillAhead < ready.size()) prefetch_counters(works[ready[i + kFillAhead]]);
    const Work& work = works[ready[i]];
    const int operands = 2 + reading.groups[slots[ready[i]].group].variant.cpu->states;
    if (work.device_step) {
      count_version(work.step);  // the device counts
    } else if (counts_steps) {
      count_step(work);
    }
    if (work.cut != 0) {
      count_versions_of_whole(reading, ready[i], operands, scaled);
      continue;
    }
    for (int k = 0; k < operands; ++k) {
      if (k != 1 || scaled) count_version(work.operands[k]);
    }
  }
}

}  // namespace fusedopt
