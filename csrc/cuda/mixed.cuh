// The CUDA sweep of operands in several formats, which are known only when it runs: element by
// element, in float. It names no optimizer.
#pragma once

#include <cstdint>

#include "cuda/sweep.cuh"
#include "engine/format.h"
#include "engine/noise.h"

// Load and store, inlined for each operand of each rule, were a sixth of the library and half of
// nvcc's time.
#if defined(__CUDACC__)
#define FUSEDOPT_CALLED static __host__ __device__ __noinline__
#else
#define FUSEDOPT_CALLED inline
#endif

namespace fusedopt::cuda {

template <Dtype kDtype>
FUSEDOPT_HD auto* elements_at(uint64_t address) {
  return reinterpret_cast<typename Element<kDtype>::Type*>(address);
}

// The address of one element of an operand, and of a split number's lower half.
struct At {
  uint64_t address;
  uint64_t remainder;
};

template <Dtype kDtype>
FUSEDOPT_HD float load_as(uint64_t address) {
  return Storage<kDtype>::load(*elements_at<kDtype>(address));
}

template <Dtype kDtype>
FUSEDOPT_HD void store_as(uint64_t address, float value) {
  *elements_at<kDtype>(address) = Storage<kDtype>::store(value);
}

FUSEDOPT_HD int16_t* remainder_at(const At& at) { return reinterpret_cast<int16_t*>(at.remainder); }

FUSEDOPT_CALLED float load(Format format, At at) {
  switch (format) {
    case Format::kFloat32:
      return load_as<Dtype::kFloat32>(at.address);
    case Format::kFloat16:
      return load_as<Dtype::kFloat16>(at.address);
    case Format::kSplitFloat32:
      return join(*elements_at<Dtype::kBFloat16>(at.address), *remainder_at(at));
    default:
      return load_as<Dtype::kBFloat16>(at.address);
  }
}

// `noise` is the element's and the operand's.
FUSEDOPT_CALLED void store(Format format, At at, float value, uint32_t noise) {
  switch (format) {
    case Format::kFloat32:
      return store_as<Dtype::kFloat32>(at.address, value);
    case Format::kFloat16:
      return store_as<Dtype::kFloat16>(at.address, value);
    case Format::kNoisyBFloat16:
      *elements_at<Dtype::kBFloat16>(at.address) = round_with(noise, value);
      return;
    case Format::kSplitFloat32: {
      const Halves halves = split(value);
      *elements_at<Dtype::kBFloat16>(at.address) = halves.upper;
      *remainder_at(at) = halves.remainder;
      return;
    }
    default:
      return store_as<Dtype::kBFloat16>(at.address, value);
  }
}

FUSEDOPT_HD uint64_t key_at(const SweepArguments& args, uint32_t rule, int rule_words) {
  if (!args.noisy) return 0;
  return args.device_keys != nullptr ? args.device_keys[rule] : args.words[rule + rule_words];
}

// Element `index` of a tensor; its words are those of a table with formats.
template <typename Rule>
FUSEDOPT_HD void step_element(const SweepArguments& args, const uint64_t* words, const Place& place,
                              const Rule& rule, uint64_t step_key, float factor, int64_t index) {
  constexpr int kOperands = kFirstState + Rule::kStates;
  const uint64_t remainder = words[kOperands];
  int64_t offsets[kOperands + 1];
  if (place.layout != 0) {
    offsets_in(args.words + place.layout, kOperands + (remainder != 0), index, offsets);
  }
  At at[kOperands];
  float values[kOperands];
  for (int k = 0; k < kOperands; ++k) {
    const int64_t offset = place.layout == 0 ? index : offsets[k];
    const int64_t other = place.layout == 0 ? index : offsets[kOperands];
    at[k] = {words[k] + offset * item_bytes(args.formats[k]), remainder + other * kRemainderBytes};
    values[k] = load(args.formats[k], at[k]);
  }
  const uint64_t number = words[kOperands + 2] + index;
  const NoiseKey key(step_key, static_cast<uint32_t>(words[kOperands + 1]), number);
  if (args.scaled != 0) {
    const auto scale = static_cast<float>(args.scale_at != nullptr ? *args.scale_at : args.scale);
    values[kGrad] = values[kGrad] / scale;
    store(args.formats[kGrad], at[kGrad], values[kGrad], 0);
  }
  rule(values[kParam], factor * values[kGrad], values + kFirstState);
  for (int k = 0; k < kOperands; ++k) {
    if (k == kGrad) continue;
    const uint32_t noise = noise_at(key, noise_factor(k), static_cast<uint32_t>(number));
    store(args.formats[k], at[k], values[k], noise);
  }
}

template <typename Rule>
FUSEDOPT_HD void mixed_chunk(const SweepArguments& args, uint32_t block, uint32_t thread) {
  constexpr int kOperands = kFirstState + Rule::kStates;
  constexpr int kRuleWords = (sizeof(Rule) + sizeof(uint64_t) - 1) / sizeof(uint64_t);
  if (args.found_inf != nullptr && *args.found_inf != 0) return;
  const uint64_t* words = find_words(args, kOperands + kMixedWords, block);
  const uint64_t* last = words + kOperands + kMixedWords - kTensorWords;
  const auto numel = static_cast<int64_t>(last[0]);
  const Place place = place_of(last + 1);
  const Rule rule = rule_at<Rule>(args, place.rule);
  const uint64_t key = key_at(args, place.rule, kRuleWords);
  const auto factor = grad_factor<float>(args, place);
  const int64_t begin = static_cast<int64_t>(block - place.first) * args.chunk;
  const int64_t end = begin + args.chunk < numel ? begin + args.chunk : numel;
  for (int64_t i = begin + thread; i < end; i += kBlockThreads) {
    step_element<Rule>(args, words, place, rule, key, factor, i);
  }
}

}  // namespace fusedopt::cuda
