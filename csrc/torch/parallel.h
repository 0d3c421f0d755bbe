// torch's thread pool, in the form in which cpu/ takes it.
#pragma once

#include <ATen/Parallel.h>

#include <cstdint>

namespace fusedopt {

inline void parallel_for(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t),
                         void* context) {
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

}  // namespace fusedopt
