// Norms on a CUDA device. Plain C++: no CUDA header.
#pragma once

#include <cstdint>

#include "engine/api.h"
#include "engine/norm.h"

namespace fusedopt::cuda {

// The norm of tensors on one device, none of them float64.
struct NormRequest {
  Norm kind;
  const NormEntry* entries;
  int64_t count;   // of entries; not 0
  double* memory;  // on the device: norm_memory(blocks) numbers
  float* total;    // on the device: the result, of squares the root
};

inline constexpr int64_t norm_memory(int64_t blocks) {
  return blocks * (kNormLanes + 1) + kNormColumns;
}

// Queues the norm on a stream of the device, which has to be the current one; waits for nothing.
// Throws std::runtime_error if a launch fails.
FUSEDOPT_API void norm(const NormRequest& request, int device, void* stream);

}  // namespace fusedopt::cuda
