// Asking for memory a few parameters before it is needed: a step over many small tensors waits for
// their scattered objects, not for arithmetic.
#pragma once

#include <cstddef>

namespace fusedopt {

// Asks for bytes [kBegin, kEnd) from an address on, which may be null or stale, because nothing is
// read.
template <size_t kBegin, size_t kEnd, bool kForWriting = false>
inline void prefetch(const void* address) {
  const char* at = static_cast<const char*>(address);
  for (size_t i = kBegin; i < kEnd; i += 64) __builtin_prefetch(at + i, kForWriting);
  if (kEnd - kBegin > 1) __builtin_prefetch(at + kEnd - 1, kForWriting);
  // g++ 12 drops calls of a function that only prefetches: to the compiler, such a call does
  // nothing.
  asm volatile("");
}

}  // namespace fusedopt
