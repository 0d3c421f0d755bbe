// Counting: writes step counts and versions, reads nothing but the reading, and can't fail.
#include "torch/count.h"

#include <c10/core/DefaultDtype.h>

#include <cstring>

#include "engine/elements.h"
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
void write(const Scalar& scalar, T value) {
  std::memcpy(const_cast<char*>(scalar.address), &value, sizeof value);
}

__attribute__((noinline)) void count_unusual(Scalar step) {
  const double next = next_unusual_step(step);
  switch (step.type) {
    case c10::ScalarType::BFloat16:
      return write(step, Storage<Dtype::kBFloat16>::store(static_cast<float>(next)));
    case c10::ScalarType::Half:
      return write(step, Storage<Dtype::kFloat16>::store(static_cast<float>(next)));
    case c10::ScalarType::Byte:
      return write(step, static_cast<uint8_t>(next));
    case c10::ScalarType::Char:
      return write(step, static_cast<int8_t>(next));
    case c10::ScalarType::Short:
      return write(step, static_cast<int16_t>(next));
    case c10::ScalarType::Int:
      return write(step, static_cast<int32_t>(next));
    default:
      return write(
          step, static_cast<int64_t>(static_cast<uint64_t>(value_at<int64_t>(step.address)) + 1));
  }
}

FUSEDOPT_INLINE void count_step(Scalar step) {
  if (step.type == c10::ScalarType::Float) {
    write(step, value_at<float>(step.address) + 1.0f);
  } else if (step.type == c10::ScalarType::Double) {
    write(step, value_at<double>(step.address) + 1.0);
  } else {
    count_unusual(step);
  }
}

// Counts up the DTensors' own versions, as torch's operators do, and not their pieces'.
void count_versions_of_whole(const Reading& reading, int index, bool scaled) {
  const Slot& slot = reading.slots()[index];
  const Work& work = reading.works()[index];
  const Group& group = reading.groups[slot.group];
  impl_of(slot.param).bump_version();
  for (int k = kFirstState; k < group.operands; ++k) {
    impl_of(work.traces.state[group.entries[k]]).bump_version();
  }
  // By now another thread may have replaced the gradient, or dropped it.
  const at::Tensor grad = scaled ? impl_of(slot.param).grad() : at::Tensor();
  if (grad.defined()) grad.unsafeGetTensorImpl()->bump_version();
}

// Behind a counter's table of functions and reference count.
constexpr size_t kVersionAt = 16;

void prefetch_version(const Operand& operand) {
  prefetch<kVersionAt, kVersionAt + 1, true>(operand.version);
}

// Asks for what counting reads and writes of a slot.
void prefetch_counters(const Work& work, int held, bool scaled) {
  const Operand* operands = work.operands;
  prefetch_version(operands[kParam]);
  if (scaled) prefetch_version(operands[kGrad]);
  for (const Operand* at = operands + kFirstState; at != operands + held; ++at) {
    prefetch_version(*at);
  }
}

// The dtype of a number that isn't the step count, and so has one of the four.
Dtype dtype_of(c10::ScalarType type) {
  switch (type) {
    case c10::ScalarType::Float:
      return Dtype::kFloat32;
    case c10::ScalarType::Double:
      return Dtype::kFloat64;
    case c10::ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:
      return Dtype::kFloat16;
  }
}

double value_of(const Scalar& scalar) { return load(scalar.address, dtype_of(scalar.type)); }

// Writes the state's single numbers beside the step count. A device writes its own.
__attribute__((noinline)) void write_numbers(const Work& work, const Group& group,
                                             const Counts& counts) {
  for (size_t k = 1; k < group.scalars; ++k) {
    const Scalar scalar = scalar_of(work, group, k);
    if (scalar.on_device) continue;
    store(const_cast<char*>(scalar.address), dtype_of(scalar.type), counts.after[k - 1]);
  }
}

// The numbers of state that is still to be made.
__attribute__((noinline)) Counts first_counts(const Optimizer& optimizer, const Group& group) {
  Counts counts{1};
  for (size_t k = 1; k < optimizer.scalars.size(); ++k) {
    const State& scalar = optimizer.scalars[k];
    counts.before[k - 1] = scalar.value;
    for (const Option& option : optimizer.options) {
      if (scalar.from_group == nullptr || std::strcmp(option.key, scalar.from_group) != 0) continue;
      counts.before[k - 1] = group.numbers[option.at[0]];
    }
  }
  return counts;
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

double next_unusual_step(Scalar step) {
  const char* at = step.address;
  switch (step.type) {
    case c10::ScalarType::Double:
      return value_at<double>(at) + 1.0;
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

Counts read_counts(const Optimizer& optimizer, const Group& group, const Work& work, double step) {
  if (work.fresh) return first_counts(optimizer, group);
  Counts counts{step};
  for (size_t k = 1; k < optimizer.scalars.size(); ++k) {
    const Scalar scalar = scalar_of(work, group, k);
    if (scalar.on_device) continue;
    counts.before[k - 1] = value_of(scalar);
    counts.is_double[k - 1] = scalar.type == c10::ScalarType::Double;
  }
  return counts;
}

bool has_numbers(const Work& work, const Work& other, const Group& group, const Counts& counts) {
  bool same = !work.fresh && !other.fresh;
  for (size_t k = 1; same && k < group.scalars; ++k) {
    const Scalar scalar = scalar_of(work, group, k);
    same = scalar.type == other.number_types[k] && value_of(scalar) == counts.before[k - 1];
  }
  return same;
}

void advance(const Optimizer& optimizer, const Group& group, const Work& work, Counts& counts) {
  group.variant.cpu->advance(group.numbers, counts);
  const Dtype by_default = dtype_of(c10::get_default_dtype_as_scalartype());
  for (size_t k = 1; k < optimizer.scalars.size(); ++k) {
    double& after = counts.after[k - 1];
    if (optimizer.scalars[k].is_anew) after = rounded(after, by_default);
    after = rounded(after, work.fresh ? Dtype::kFloat32 : dtype_of(work.number_types[k]));
  }
}

void count(const Reading& reading, const std::vector<Counts>& counts) {
  const bool scaled = reading.scaler.scaled;
  const size_t scalars = reading.keys.optimizer->scalars.size();
  const std::vector<int>& ready = reading.ready;
  const Slot* slots = reading.slots().data();
  const Work* works = reading.works().data();
  const Group* groups = reading.groups.data();
  for (size_t i = 0; i < ready.size(); ++i) {
    const Work& work = works[ready[i]];
    const Group& group = groups[slots[ready[i]].group];
    const int held = group.held;
    if (i + kFillAhead < ready.size()) {
      prefetch_counters(works[ready[i + kFillAhead]], held, scaled);
    }
    if (group.scalars != 0) {
      const Scalar step = scalar_of(work, group, 0);
      if (!step.on_device) count_step(step);
    }
    if (scalars > 1) write_numbers(work, group, counts[i]);
    const Operand* operands = work.operands;
    int first = kFirstState;
    if (work.cut != 0) {
      count_versions_of_whole(reading, ready[i], scaled);
      first = group.operands;
    } else {
      count_version(operands[kParam]);
      if (scaled) count_version(operands[kGrad]);
    }
    for (const Operand* at = operands + first; at != operands + held; ++at) count_version(*at);
  }
}

}  // namespace fusedopt
