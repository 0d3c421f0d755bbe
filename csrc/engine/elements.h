// Elements in memory, in each dtype.
#pragma once

#include <cstring>

#include "engine/dtype.h"

namespace fusedopt {

inline void store(char* at, Dtype dtype, double value) {
  const auto f = static_cast<float>(value);
  const uint16_t bfloat = Storage<Dtype::kBFloat16>::store(f);
  const uint16_t half = Storage<Dtype::kFloat16>::store(f);
  const void* from[] = {&f, &value, &bfloat, &half};
  std::memcpy(at, from[static_cast<int>(dtype)], item_bytes(dtype));
}

}  // namespace fusedopt
