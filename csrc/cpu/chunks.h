// Shares a range of elements among threads.
#pragma once

#include <algorithm>
#include <atomic>

#include "cpu/kernel.h"
#include "engine/tuning.h"

namespace fusedopt::cpu {

// Calls body(begin, end) for disjoint ranges that cover [0, elements), on this thread alone if
// there are few.
template <typename Body>
void for_each_chunk(int64_t elements, Parallel parallel, const Body& body) {
  if (elements < kParallelElements) return body(int64_t{0}, elements);
  struct Shared {
    const Body& body;
    int64_t elements;
    int64_t chunk;
    std::atomic<int64_t> next{0};
  } shared{body, elements, std::clamp(elements / 16, kSmallestChunk, kChunkElements)};
  parallel(
      (elements + shared.chunk - 1) / shared.chunk,
      [](void* context) {
        auto& all = *static_cast<Shared*>(context);
        int64_t begin;
        while ((begin = all.next.fetch_add(all.chunk, std::memory_order_relaxed)) < all.elements) {
          all.body(begin, std::min(begin + all.chunk, all.elements));
        }
      },
      &shared);
}

}  // namespace fusedopt::cpu
