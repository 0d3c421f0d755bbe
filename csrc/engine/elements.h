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

inline double load(const char* at, Dtype dtype) {
  double value;
  float f;
  uint16_t half;
  switch (dtype) {
    case Dtype::kFloat64:
      std::memcpy(&value, at, sizeof value);
      return value;
    case Dtype::kFloat32:
      std::memcpy(&f, at, sizeof f);
      return f;
    default:
      std::memcpy(&half, at, sizeof half);
      return dtype == Dtype::kBFloat16 ? Storage<Dtype::kBFloat16>::load(half)
                                       : Storage<Dtype::kFloat16>::load(half);
  }
}

// The value as the dtype stores it.
inline double rounded(double value, Dtype dtype) {
  char stored[sizeof value];
  store(stored, dtype, value);
  return load(stored, dtype);
}

}  // namespace fusedopt
