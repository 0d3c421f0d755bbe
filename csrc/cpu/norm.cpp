// The norms of blocks on each instruction set, shared among threads.
#include "cpu/norm.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/chunks.h"

namespace fusedopt::cpu {

namespace {

using OfBlock = void (*)(const char* at, int64_t n, double scale, double* lanes);

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
    double lanes[kNormLanes];
    of(entry.at + at * item_bytes(entry.dtype), n, scale, lanes);
    double& result = results[entry.blocks + block];
    result = reduce_norms(kind, lanes, kNormLanes);
    if (kind == Norm::kSquares && entry.dtype != Dtype::kFloat64) result = result * scale * scale;
  }
}

// Asks for a tensor's first bytes, because short tensors lie scattered.
void prefetch(const NormEntry& entry) {
  const int64_t bytes = std::min<int64_t>(entry.numel * item_bytes(entry.dtype), kPrefetchBytes);
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(entry.at + at);
  asm volatile("");  // or g++ 12 drops the call: torch/prefetch.h
}

}  // namespace

double norm(Norm kind, double scale, const NormEntry* entries, int64_t count, double* results,
            Parallel parallel) {
  if (count == 0) return norm_of_none(kind);
  const NormEntry& last = entries[count - 1];
  for_each_chunk(last.start + last.numel, parallel, [&](int64_t begin, int64_t end) {
    const NormEntry* entry =
        std::upper_bound(entries, entries + count, begin,
                         [](int64_t at, const NormEntry& each) { return at < each.start; });
    for (--entry; entry != entries + count && entry->start < end; ++entry) {
      if (entry + kSweepAhead < entries + count) prefetch(entry[kSweepAhead]);
      of_range(kind, scale, *entry, begin, end, results);
    }
  });
  double columns[kNormColumns];
  std::fill_n(columns, kNormColumns, norm_of_none(kind));
  const int64_t blocks = last.blocks + norm_blocks(last.numel);
  for (int64_t i = 0; i < blocks; ++i) {
    double& column = columns[i % kNormColumns];
    column = add_norms(kind, column, results[i]);
  }
  return __builtin_fabs(reduce_norms(kind, columns, kNormColumns));  // 0, and not -0
}

}  // namespace fusedopt::cpu
