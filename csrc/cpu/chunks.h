// Shares a range of elements among threads.
#pragma once

#include <algorithm>
#include <atomic>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "cpu/kernel.h"
#include "engine/table.h"
#include "engine/tuning.h"

namespace fusedopt::cpu {

// Every thread rounds and treats subnormals (torch.set_flush_denormal) as the calling thread does,
// or the bits would depend on which thread an element falls to.
#if defined(__x86_64__)
using FloatMode = unsigned;
inline FloatMode float_mode() { return _mm_getcsr(); }
inline void set_float_mode(FloatMode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
using FloatMode = uint64_t;
inline FloatMode float_mode() {
  FloatMode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_float_mode(FloatMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#endif

// Calls body(begin, end) for disjoint ranges that cover [0, elements), cut at multiples of
// kGranularity, on this thread alone if there are few. Where caches hold all, each thread begins
// with the same part in every step, and then helps the others; else all threads go through memory
// side by side.
template <typename Body>
void for_each_chunk(int64_t elements, Parallel parallel, const Body& body) {
  if (elements < kParallelElements) return body(int64_t{0}, elements);
  const int64_t largest = std::max(kChunkElements, elements / kMaxChunks + 1);
  const int64_t chunk = std::clamp(elements / 16, kSmallestChunk, largest);
  struct Shared {
    const Body& body;
    int64_t elements;
    int64_t chunk;
    int64_t chunks;
    FloatMode mode;
    std::atomic<bool> taken[kMaxChunks] = {};
  } shared{body, elements, round_to_granularity(chunk), 0, float_mode()};
  shared.chunks = (elements + shared.chunk - 1) / shared.chunk;
  parallel(
      shared.chunks,
      [](int64_t first, void* context) {
        auto& all = *static_cast<Shared*>(context);
        const FloatMode before = float_mode();
        if (before != all.mode) set_float_mode(all.mode);
        const int64_t own = all.elements <= kCachedElements ? first : 0;
        for (int64_t k = 0; k < all.chunks; ++k) {
          const int64_t chunk = (own + k) % all.chunks;
          std::atomic<bool>& taken = all.taken[chunk];
          if (taken.load(std::memory_order_relaxed)) continue;  // many threads may read at once
          if (taken.exchange(true, std::memory_order_relaxed)) continue;
          const int64_t begin = chunk * all.chunk;
          all.body(begin, std::min(begin + all.chunk, all.elements));
        }
        if (before != all.mode) set_float_mode(before);
      },
      &shared);
}

}  // namespace fusedopt::cpu
