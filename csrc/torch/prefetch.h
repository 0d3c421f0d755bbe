// Asking for memory a few parameters before it is needed: a step over many small tensors waits for
// their scattered objects, not for arithmetic.
#pragma once

#include <cstddef>

namespace fusedopt {

// `kBytes` from an address on, which may be null or stale: nothing is read.
template <size_t kBytes, bool kForWriting = false>
inline void prefetch(const void* address) {
  const char* at = static_cast<const char*>(address);
  for (size_t i = 0; i < kBytes; i += 64) __builtin_prefetch(at + i, kForWriting);
  if (kBytes > 1) __builtin_prefetch(at + kBytes - 1, kForWriting);
  // g++ 12 drops calls of a function that only prefetches: to it, they do nothing.
  asm volatile("");
}

}  // namespace fusedopt
