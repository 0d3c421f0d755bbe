// The stream kernel that benchmarks measure every step against.
#include "cpu/stream.h"

#include "cpu/chunks.h"

#if defined(__x86_64__) && defined(__gnu_linux__)
#define FUSEDOPT_CLONES __attribute__((target_clones("default", "avx2", "arch=skylake-avx512")))
#else
#define FUSEDOPT_CLONES
#endif

namespace fusedopt::cpu {

namespace {

// Exclusive or: one instruction per word that no value slows down, unlike subnormals in floats.
template <int kCount>
__attribute__((always_inline)) inline void update(const Streams& streams, int64_t begin,
                                                  int64_t end) {
  const uint32_t* __restrict__ read = streams.read;
  uint32_t* updated[kCount];
  for (int k = 0; k < kCount; ++k) updated[k] = streams.updated[k];
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#else
#pragma GCC ivdep
#endif
  for (int64_t i = begin; i < end; ++i) {
    for (int k = 0; k < kCount; ++k) updated[k][i] ^= read[i];
  }
}

template <>
__attribute__((always_inline)) inline void update<0>(const Streams& streams, int64_t begin,
                                                     int64_t end) {
  uint32_t all = 0;
  for (int64_t i = begin; i < end; ++i) all ^= streams.read[i];
  asm volatile("" : : "r"(all));  // or nothing would be read
}

FUSEDOPT_CLONES void update_range(const Streams& streams, int64_t begin, int64_t end) {
  static_assert(kMaxStreams == 4);
  switch (streams.count) {
    case 0:
      return update<0>(streams, begin, end);
    case 1:
      return update<1>(streams, begin, end);
    case 2:
      return update<2>(streams, begin, end);
    case 3:
      return update<3>(streams, begin, end);
    default:
      return update<4>(streams, begin, end);
  }
}

}  // namespace

void stream(const Streams& streams, Parallel parallel) {
  for_each_chunk(streams.words, parallel,
                 [&](int64_t begin, int64_t end) { update_range(streams, begin, end); });
}

}  // namespace fusedopt::cpu
