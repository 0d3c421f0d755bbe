// Makes rules on the device, where there are numbers on which they depend.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>

#include "cuda/arguments.h"
#include "engine/dtype.h"
#include "engine/noise.h"
#include "rules/rule.h"

namespace fusedopt::cuda {

FUSEDOPT_HD double number_at(uint64_t bits, uint8_t type) {
  const auto* at = reinterpret_cast<const void*>(bits);
  switch (type) {
    case static_cast<uint8_t>(Dtype::kFloat32):
      return *static_cast<const float*>(at);
    case static_cast<uint8_t>(Dtype::kFloat64):
      return *static_cast<const double*>(at);
    case static_cast<uint8_t>(Dtype::kBFloat16):
      return Storage<Dtype::kBFloat16>::load(*static_cast<const uint16_t*>(at));
    case static_cast<uint8_t>(Dtype::kFloat16):
      return Storage<Dtype::kFloat16>::load(*static_cast<const uint16_t*>(at));
  }
  double given;
  memcpy(&given, &bits, sizeof given);
  return given;
}

// Counts a step on the device, in the count's own dtype, and returns the new count.
FUSEDOPT_HD double count_step(uint64_t bits, uint8_t type) {
  auto* at = reinterpret_cast<void*>(bits);
  if (type == static_cast<uint8_t>(Dtype::kFloat32)) return *static_cast<float*>(at) += 1.0f;
  if (type == static_cast<uint8_t>(Dtype::kFloat64)) return *static_cast<double*>(at) += 1.0;
  return number_at(bits, type);
}

FUSEDOPT_HD void store_number(uint64_t bits, uint8_t type, double value) {
  auto* at = reinterpret_cast<void*>(bits);
  switch (type) {
    case static_cast<uint8_t>(Dtype::kFloat32):
      *static_cast<float*>(at) = static_cast<float>(value);
      return;
    case static_cast<uint8_t>(Dtype::kFloat64):
      *static_cast<double*>(at) = value;
      return;
    case static_cast<uint8_t>(Dtype::kBFloat16):
      *static_cast<uint16_t*>(at) = Storage<Dtype::kBFloat16>::store(static_cast<float>(value));
      return;
    case static_cast<uint8_t>(Dtype::kFloat16):
      *static_cast<uint16_t*>(at) = Storage<Dtype::kFloat16>::store(static_cast<float>(value));
      return;
  }
}

// Counts the step on the device, and the state's other numbers.
template <typename Options>
FUSEDOPT_HD Counts count_up(const Options& options, const uint64_t* bits, const uint8_t* types) {
  Counts counts{count_step(bits[0], types[0]), {}, {}, {}};
  constexpr int kScalars = kScalarsOf<Options>;
  for (int k = 0; k < kScalars; ++k) {
    counts.before[k] = number_at(bits[1 + k], types[1 + k]);
    counts.is_double[k] = types[1 + k] == static_cast<uint8_t>(Dtype::kFloat64);
  }
  advance(options, counts);
  for (int k = 0; k < kScalars; ++k) {
    store_number(bits[1 + k], types[1 + k], counts.after[k]);
    counts.after[k] = number_at(bits[1 + k], types[1 + k]);
  }
  return counts;
}

// Makes one rule on the device, from numbers that are there.
template <typename Rule>
FUSEDOPT_HD void prepare_rule(const PrepareArguments& args, uint32_t index) {
  using Options = typename Rule::Options;
  constexpr int kOptions = sizeof(Options) / sizeof(double);
  static_assert(kOptions <= kMaxOptions);
  if (index >= static_cast<uint32_t>(args.count)) return;
  if (args.found_inf != nullptr && *args.found_inf != 0) return;
  const int group = args.groups[index];
  double numbers[kOptions];
  for (int i = 0; i < kOptions; ++i) {
    numbers[i] = number_at(args.options[group][i], args.option_types[group][i]);
  }
  Options options;
  memcpy(&options, numbers, sizeof options);
  const uint32_t first = index * args.numbers;
  const Counts counts = count_up(options, args.counts + first, args.count_types + first);
  // The key comes first, because the largest rule in double spilled registers with its numbers
  // alive.
  constexpr int kCounts = 1 + kScalarsOf<Options>;
  const uint32_t roundings = first + kCounts;
  const double rounding = args.numbers == kCounts
                              ? counts.step
                              : count_step(args.counts[roundings], args.count_types[roundings]);
  if (args.keys != nullptr) args.keys[index] = step_key(args.seeds[group], rounding);
  // The padding is written, too, because a sweep reads whole words, and none may be memory that
  // nobody wrote.
  alignas(Rule) uint32_t words[sizeof(Rule) / sizeof(uint32_t)] = {};
  const Rule* rule = new (words) Rule(make_rule<Rule>(options, counts));
  memcpy(static_cast<Rule*>(args.rules) + index, rule, sizeof words);
}

}  // namespace fusedopt::cuda
