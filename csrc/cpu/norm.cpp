// The norms of blocks on each instruction set, shared among threads.
#include "cpu/norm.h"

#include <algorithm>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/chunks.h"

namespace fusedopt::cpu {

namespace {

constexpr int kLanes = 16;

// Element i of a block goes to lane i % 16.
using OfBlock = void (*)(const char* at, int64_t n, double scale, double* lanes);

// Of no elements at all.
constexpr double first_of(Norm kind) {
  return kind == Norm::kSmallest ? std::numeric_limits<double>::infinity() : 0.0;
}

// Of two parts.
inline double combine(Norm kind, double a, double b) {
  switch (kind) {
    case Norm::kLargest:
      return b > a || b != b ? b : a;
    case Norm::kSmallest:
      return b < a || b != b ? b : a;
    default:
      return a + b;
  }
}

double reduce(Norm kind, double* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) {
      lanes[lane] = combine(kind, lanes[lane], lanes[lane + width]);
    }
  }
  return lanes[0];
}

}  // namespace

namespace baseline {
namespace {
#include "cpu/norm.inl"
}
}  // namespace baseline

#if defined(__x86_64__)
#define FUSEDOPT_F16C
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif
namespace avx2 {
namespace {
#include "cpu/norm.inl"
}
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define FUSEDOPT_AVX512
namespace avx512 {
namespace {
#include "cpu/norm.inl"
}
}  // namespace avx512
#undef FUSEDOPT_AVX512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef FUSEDOPT_F16C
#endif

namespace {

OfBlock of_block(Norm kind, Dtype dtype) {
  constexpr const OfBlock(*kAll[kIsas])[kDtypes] = {
      baseline::kOfBlock,
#if defined(__x86_64__)
      avx2::kOfBlock,
      avx512::kOfBlock,
#endif
  };
  return kAll[active_isa()][static_cast<int>(kind)][static_cast<int>(dtype)];
}

// The blocks of a tensor that begin in [begin, end) of all tensors' elements.
void of_range(Norm kind, double scale, const NormEntry& entry, int64_t begin, int64_t end,
              double* results) {
  const int64_t first = norm_blocks(std::max<int64_t>(begin - entry.start, 0));
  const int64_t last = norm_blocks(std::min(end - entry.start, entry.numel));
  const OfBlock of = of_block(kind, entry.dtype);
  for (int64_t block = first; block < last; ++block) {
    const int64_t at = block * kNormBlock;
    const int64_t n = std::min(kNormBlock, entry.numel - at);
    double lanes[kLanes];
    of(entry.at + at * item_bytes(entry.dtype), n, scale, lanes);
    results[entry.blocks + block] = reduce(kind, lanes);
  }
}

}  // namespace

double norm(Norm kind, double scale, const NormEntry* entries, int64_t count, double* results,
            Parallel parallel) {
  if (count == 0) return first_of(kind);
  const NormEntry& last = entries[count - 1];
  for_each_chunk(last.start + last.numel, parallel, [&](int64_t begin, int64_t end) {
    const NormEntry* entry =
        std::upper_bound(entries, entries + count, begin,
                         [](int64_t at, const NormEntry& each) { return at < each.start; });
    for (--entry; entry != entries + count && entry->start < end; ++entry) {
      of_range(kind, scale, *entry, begin, end, results);
    }
  });
  double all = first_of(kind);
  const int64_t blocks = last.blocks + norm_blocks(last.numel);
  for (int64_t i = 0; i < blocks; ++i) all = combine(kind, all, results[i]);
  return __builtin_fabs(all);  // 0, and not -0
}

}  // namespace fusedopt::cpu
