// torch's thread pool, in the form in which cpu/ takes it.
#pragma once

#include <ATen/Parallel.h>

#include <cstdint>

namespace fusedopt {

inline void parallel(int64_t most, void (*task)(int64_t, void*), void* context) {
  at::parallel_for(0, most, 1, [&](int64_t first, int64_t) { task(first, context); });
}

}  // namespace fusedopt
