// The storage types and their conversions, in integer arithmetic that gives the same bits on every
// device.
#pragma once

#include <cstdint>
#include <cstring>

#include "engine/host_device.h"

namespace fusedopt {

enum class Dtype : int { kFloat32, kFloat64, kBFloat16, kFloat16 };
inline constexpr int kDtypes = 4;

// Bytes of an element.
inline constexpr int kItemBytes[kDtypes] = {4, 8, 2, 2};
constexpr int item_bytes(Dtype dtype) { return kItemBytes[static_cast<int>(dtype)]; }

// Their largest finite numbers.
inline constexpr double kLargest[kDtypes] = {0x1.fffffep+127, 0x1.fffffffffffffp+1023, 0x1.fep+127,
                                             65504};

// Storage is unaligned on purpose: torch.frombuffer makes tensors at any address, and a plain load
// of a misaligned float is undefined. An unaligned load costs nothing on x86-64 and aarch64. (One
// typedef per type: the attributes are lost on a template argument.)
template <Dtype kDtype>
struct Storage;

template <>
struct Storage<Dtype::kFloat32> {
  using Compute = float;
  typedef float Type __attribute__((aligned(1), may_alias));
  static FUSEDOPT_HD float load(Type x) { return x; }
  static FUSEDOPT_HD float store(float x) { return x; }
};

template <>
struct Storage<Dtype::kFloat64> {
  using Compute = double;
  typedef double Type __attribute__((aligned(1), may_alias));
  static FUSEDOPT_HD double load(Type x) { return x; }
  static FUSEDOPT_HD double store(double x) { return x; }
};

FUSEDOPT_HD uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

FUSEDOPT_HD float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

template <>
struct Storage<Dtype::kBFloat16> {
  using Compute = float;
  typedef uint16_t Type __attribute__((aligned(1), may_alias));

  static FUSEDOPT_HD float load(uint16_t x) { return float_of(uint32_t(x) << 16); }

  // Round to nearest even; any NaN becomes torch's 0x7fc0.
  static FUSEDOPT_HD uint16_t store(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
};

// A GPU has one instruction for each conversion. The instruction's result differs for NaNs only,
// whose sign and payload a GPU's arithmetic doesn't keep anyway.
template <>
struct Storage<Dtype::kFloat16> {
  using Compute = float;
  typedef uint16_t Type __attribute__((aligned(1), may_alias));

  // Shift the exponent into place; infinities and NaNs need a second shift, and subnormals become
  // normal by an exact subtraction. NaNs are quieted, as vcvtph2ps does.
  static FUSEDOPT_HD float load(uint16_t x) {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x));
    return value;
#else
    const uint32_t sign = uint32_t(x & 0x8000u) << 16;
    const uint32_t magnitude = uint32_t(x & 0x7fffu) << 13;
    const uint32_t exponent = magnitude & 0x0f800000u;
    const uint32_t normal = magnitude + 0x38000000u;
    const uint32_t subnormal = bits_of(float_of(magnitude + 0x38800000u) - float_of(0x38800000u));
    uint32_t special = magnitude + 0x70000000u;
    special |= (special & 0x007fffffu) != 0 ? 0x00400000u : 0u;
    const uint32_t finite = exponent == 0 ? subnormal : normal;
    return float_of(sign | (exponent == 0x0f800000u ? special : finite));
#endif
  }

  // Round to nearest even, as vcvtps2ph does; subnormal results by an addition that rounds in the
  // right place.
  static FUSEDOPT_HD uint16_t store(float x) {
#if defined(__CUDA_ARCH__)
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
#else
    const uint32_t sign = bits_of(x) & 0x80000000u;
    const uint32_t bits = bits_of(x) ^ sign;
    const uint32_t normal = (bits + 0xc8000fffu + ((bits >> 13) & 1u)) >> 13;
    const uint32_t subnormal = bits_of(float_of(bits) + float_of(0x3f000000u)) - 0x3f000000u;
    const uint32_t nan = 0x7e00u | ((bits >> 13) & 0x3ffu);
    const uint32_t special = bits > 0x7f800000u ? nan : 0x7c00u;
    const uint32_t finite = bits < 0x38800000u ? subnormal : normal;
    return uint16_t((sign >> 16) | (bits >= 0x47800000u ? special : finite));
#endif
  }
};

}  // namespace fusedopt
