// The CUDA sweep: one block steps one chunk of one tensor. It names no optimizer.
//
// Bodies take the block's and the thread's number as arguments and have no barrier, so the tests
// run them on the host.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/arguments.h"
#include "engine/dtype.h"
#include "engine/tuning.h"

#if defined(__CUDACC__)
#define FUSEDOPT_UNROLL _Pragma("unroll")
#else
#define FUSEDOPT_UNROLL
#endif

namespace fusedopt::cuda {

// An element in device memory, which is aligned: the device can't access any other.
template <Dtype kDtype>
struct Element;
template <>
struct Element<Dtype::kFloat32> {
  typedef float Type __attribute__((may_alias));
};
template <>
struct Element<Dtype::kFloat64> {
  typedef double Type __attribute__((may_alias));
};
template <>
struct Element<Dtype::kBFloat16> {
  typedef uint16_t Type __attribute__((may_alias));
};
template <>
struct Element<Dtype::kFloat16> {
  typedef uint16_t Type __attribute__((may_alias));
};

// What one access moves: 16 bytes, or one element.
template <Dtype kDtype, int kWidth>
struct alignas(kWidth * sizeof(typename Element<kDtype>::Type)) [[gnu::may_alias]] Piece {
  using Value = typename Element<kDtype>::Type;
  Value elements[kWidth];

  FUSEDOPT_HD Value get(int i) const { return elements[i]; }
  FUSEDOPT_HD void set(int i, Value value) { elements[i] = value; }
};

// Eight 16-bit elements stay in four registers; as an array they would be taken apart into eight.
struct alignas(kVectorBytes) [[gnu::may_alias]] Eight {
  uint32_t words[4];

  FUSEDOPT_HD uint16_t get(int i) const {
    return static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
  }
  FUSEDOPT_HD void set(int i, uint16_t value) {
    const uint32_t other = words[i / 2] & (i % 2 == 0 ? 0xffff0000u : 0x0000ffffu);
    words[i / 2] = other | static_cast<uint32_t>(value) << (i % 2 * 16);
  }
};
template <>
struct Piece<Dtype::kBFloat16, 8> : Eight {};
template <>
struct Piece<Dtype::kFloat16, 8> : Eight {};

// What the load phase does to gradients.
template <typename Compute>
struct Gradients {
  Compute factor;  // of what a rule sees
  bool scaled;
  Compute scale;
};

template <typename Rule, Dtype kDtype, int kWidth>
FUSEDOPT_HD void apply(const Rule& rule,
                       const Gradients<typename Storage<kDtype>::Compute>& gradients,
                       Piece<kDtype, kWidth>* pieces) {
  using S = Storage<kDtype>;
  using Compute = typename S::Compute;
  FUSEDOPT_UNROLL
  for (int i = 0; i < kWidth; ++i) {
    Compute param = S::load(pieces[kParam].get(i));
    Compute grad = S::load(pieces[kGrad].get(i));
    Compute state[Rule::kStates + 1];
    FUSEDOPT_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) state[k] = S::load(pieces[kFirstState + k].get(i));
    if (gradients.scaled) {
      grad = grad / gradients.scale;
      pieces[kGrad].set(i, S::store(grad));
    }
    rule(param, gradients.factor * grad, state);
    pieces[kParam].set(i, S::store(param));
    FUSEDOPT_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) pieces[kFirstState + k].set(i, S::store(state[k]));
  }
}

// One thread's share of `count` pieces. All loads of a batch are on their way before the first is
// used. locate(i, where) tells where piece i of each operand is; pieces of a batch lie in a row.
template <typename Rule, Dtype kDtype, int kWidth, int kBatch, typename Locate>
FUSEDOPT_HD void step_pieces(const Rule& rule,
                             const Gradients<typename Storage<kDtype>::Compute>& gradients,
                             uint32_t thread, uint32_t count, const Locate& locate) {
  constexpr int kOperands = kFirstState + Rule::kStates;
  for (uint32_t at = thread; at < count; at += kBlockThreads * kBatch) {
    Piece<kDtype, kWidth> pieces[kBatch][kOperands];
    Piece<kDtype, kWidth>* where[kOperands];
    locate(at, where);
    FUSEDOPT_UNROLL
    for (uint32_t b = 0; b < kBatch; ++b) {
      if (b != 0 && at + b * kBlockThreads >= count) continue;
      FUSEDOPT_UNROLL
      for (int k = 0; k < kOperands; ++k) pieces[b][k] = where[k][b * kBlockThreads];
    }
    FUSEDOPT_UNROLL
    for (uint32_t b = 0; b < kBatch; ++b) {
      if (b != 0 && at + b * kBlockThreads >= count) continue;
      apply<Rule, kDtype, kWidth>(rule, gradients, pieces[b]);
      FUSEDOPT_UNROLL
      for (int k = 0; k < kOperands; ++k) {
        if (k != kGrad || gradients.scaled) where[k][b * kBlockThreads] = pieces[b][k];
      }
    }
  }
}

// The same as of a Table.
template <typename Compute>
FUSEDOPT_HD Compute grad_factor(const SweepArguments& args, const Place& place) {
  const auto clip = static_cast<Compute>(args.clip_at != nullptr ? *args.clip_at : args.clip);
  return place.maximize ? -clip : clip;
}

FUSEDOPT_HD Place place_of(const uint64_t* words) {
  Place place;
  memcpy(&place, words, sizeof place);
  return place;
}

// The words of the tensor to which a block's chunk belongs. Each tensor has `each` words, and its
// last is a Place.
FUSEDOPT_HD const uint64_t* find_words(const SweepArguments& args, int each, uint32_t block) {
  int low = 0;
  int high = args.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (place_of(args.words + middle * each + each - 1).first <= block ? low : high) = middle;
  }
  return args.words + low * each;
}

// Where element `index` of each operand is, counted in elements, by a layout's words.
FUSEDOPT_HD void offsets_in(const uint64_t* layout, int operands, int64_t index, int64_t* offsets) {
  const int ndim = static_cast<int>(layout[0]);
  const uint64_t* sizes = layout + 1;
  const uint64_t* strides = sizes + ndim;
  FUSEDOPT_UNROLL
  for (int k = 0; k < operands; ++k) offsets[k] = 0;
  auto rest = static_cast<uint64_t>(index);
  for (int d = ndim - 1; d >= 0; --d) {
    const uint64_t next = rest / sizes[d];
    const auto coordinate = static_cast<int64_t>(rest - next * sizes[d]);
    rest = next;
    FUSEDOPT_UNROLL
    for (int k = 0; k < operands; ++k) {
      offsets[k] += coordinate * static_cast<int64_t>(strides[k * ndim + d]);
    }
  }
}

// Two branches, because a pointer to either would make the arguments' constant memory look like any
// other, and slow to read.
template <typename Rule>
FUSEDOPT_HD Rule rule_at(const SweepArguments& args, uint32_t index) {
  typedef uint32_t Word __attribute__((may_alias));
  struct Words {
    alignas(Rule) uint32_t all[sizeof(Rule) / sizeof(uint32_t)];
  } words;
  static_assert(sizeof words == sizeof(Rule));
  const auto* made = static_cast<const Rule*>(args.device_rules);
  const auto* on_device = reinterpret_cast<const Word*>(made + index);
  const auto* in_arguments = reinterpret_cast<const Word*>(args.words + index);
  if (made != nullptr) {
    for (size_t i = 0; i < sizeof(Rule) / sizeof(Word); ++i) words.all[i] = on_device[i];
  } else {
    for (size_t i = 0; i < sizeof(Rule) / sizeof(Word); ++i) words.all[i] = in_arguments[i];
  }
  return __builtin_bit_cast(Rule, words);
}

template <typename Rule, Dtype kDtype>
FUSEDOPT_HD void sweep_chunk(const SweepArguments& args, uint32_t block, uint32_t thread) {
  using Compute = typename Storage<kDtype>::Compute;
  constexpr int kOperands = kFirstState + Rule::kStates;
  constexpr int kWidth = kVectorBytes / sizeof(typename Element<kDtype>::Type);
  using Vector = Piece<kDtype, kWidth>;
  using Single = Piece<kDtype, 1>;
  if (args.found_inf != nullptr && *args.found_inf != 0) return;

  const uint64_t* words = find_words(args, kOperands + kTensorWords, block);
  const auto numel = static_cast<int64_t>(words[kOperands]);
  const Place place = place_of(words + kOperands + 1);
  const Rule rule = rule_at<Rule>(args, place.rule);
  const Gradients<Compute> gradients{
      grad_factor<Compute>(args, place), args.scaled != 0,
      args.scale_at != nullptr ? Compute(*args.scale_at) : Compute(args.scale)};

  // Chunks are counted from the 16-byte boundary before the tensor, so all but the first begin at
  // one.
  const int64_t lead = place.lead;
  const int64_t from = static_cast<int64_t>(block - place.first) * args.chunk - lead;
  const int64_t begin = from < 0 ? 0 : from;
  const int64_t end = from + args.chunk < numel ? from + args.chunk : numel;
  const auto n = static_cast<uint32_t>(end - begin);
  char* base[kOperands];
  FUSEDOPT_UNROLL
  for (int k = 0; k < kOperands; ++k) {
    base[k] = reinterpret_cast<char*>(words[k]) + begin * static_cast<int64_t>(sizeof(Single));
  }

  // Elements before and after the vectors; or all.
  uint32_t head = n;
  uint32_t vectors = 0;
  if (place.vectors) {
    const auto before = static_cast<uint32_t>(-(begin + lead) & (kWidth - 1));
    head = before < n ? before : n;
    vectors = (n - head) / kWidth;
    step_pieces<Rule, kDtype, kWidth, kVectorBatch<kOperands>>(
        rule, gradients, thread, vectors, [&](uint32_t i, Vector** where) {
          FUSEDOPT_UNROLL
          for (int k = 0; k < kOperands; ++k) {
            where[k] = reinterpret_cast<Vector*>(base[k] + head * sizeof(Single)) + i;
          }
        });
  }
  const uint32_t skipped = vectors * kWidth;
  step_pieces<Rule, kDtype, 1, 1>(
      rule, gradients, thread, n - skipped, [&](uint32_t i, Single** where) {
        const uint32_t index = i < head ? i : i + skipped;
        if (place.layout == 0) {
          FUSEDOPT_UNROLL
          for (int k = 0; k < kOperands; ++k) where[k] = reinterpret_cast<Single*>(base[k]) + index;
          return;
        }
        int64_t offsets[kOperands];
        offsets_in(args.words + place.layout, kOperands, begin + index, offsets);
        FUSEDOPT_UNROLL
        for (int k = 0; k < kOperands; ++k) {
          where[k] = reinterpret_cast<Single*>(words[k]) + offsets[k];
        }
      });
}

}  // namespace fusedopt::cuda
