// What a rule may use: the one host/device macro and the few functions that give the same bits
// everywhere.
#pragma once

#if defined(__CUDACC__)
#define FUSEDOPT_HD __host__ __device__ __forceinline__
#else
#define FUSEDOPT_HD inline __attribute__((always_inline))
#endif

namespace fusedopt {

// IEEE square root. With -fno-math-errno this is one instruction, and vectorises.
FUSEDOPT_HD float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
FUSEDOPT_HD double square_root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

FUSEDOPT_HD float absolute(float x) { return __builtin_fabsf(x); }
FUSEDOPT_HD double absolute(double x) { return __builtin_fabs(x); }

FUSEDOPT_HD double fused_multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

template <typename T>
FUSEDOPT_HD bool is_finite(T x) {
  return x - x == T(0);
}

// Is it a number that a dtype with this largest number has room for?
FUSEDOPT_HD bool within(double x, double largest) { return -largest <= x && x <= largest; }

// v - a^2, rounded as if the square were exact: the difference of two averages that are nearly
// equal. In double the square's rounding error is found by splitting a in halves (Dekker 1971), so
// that no fused multiply-add is needed, which not all instruction sets have; a square that would
// overflow is taken for the greatest that doesn't, because v is infinite then, or the difference
// negative.
FUSEDOPT_HD float minus_square(float v, float a) {
  return static_cast<float>(static_cast<double>(v) - static_cast<double>(a) * a);
}
FUSEDOPT_HD double minus_square(double v, double a) {
  constexpr double kLargest = 1.3e154;
  const double magnitude = absolute(a);
  const double b = magnitude < kLargest ? magnitude : kLargest;
  const double shifted = 134217729.0 * b;  // 2^27 + 1
  const double high = shifted - (shifted - b);
  const double low = b - high;
  const double square = b * b;
  const double error = ((high * high - square) + 2.0 * high * low) + low * low;
  return ((v - square) - error) + 0.0 * a;  // not a number, if a is none or infinite
}

// torch.maximum: a NaN on either side wins.
template <typename T>
FUSEDOPT_HD T maximum(T a, T b) {
  return (a > b || a != a) ? a : b;
}

// torch.clamp: any NaN wins, and the greatest over the least.
template <typename T>
FUSEDOPT_HD T clamp(T x, T least, T greatest) {
  x = (x < least || least != least) ? least : x;
  return (x > greatest || greatest != greatest) ? greatest : x;
}

// An unevaluated sum of two doubles: about 106 bits of mantissa.
struct DoubleDouble {
  double high;
  double low;
};

FUSEDOPT_HD DoubleDouble root_of(DoubleDouble a) {
  const double root = square_root(a.high);
  if (root == 0) return {0.0, 0.0};
  const double error = (fused_multiply_add(-root, root, a.high) + a.low) / (2.0 * root);
  const double high = root + error;
  return {high, error - (high - root)};
}

FUSEDOPT_HD DoubleDouble multiply(DoubleDouble a, DoubleDouble b) {
  const double product = a.high * b.high;
  const double error =
      fused_multiply_add(a.high, b.high, -product) + (a.high * b.low + a.low * b.high);
  const double high = product + error;
  return {high, error - (high - product)};
}

// base^exponent, by squaring in double-double: libm's and CUDA's pow differ in their last bits,
// and squaring in plain double loses one bit per doubling. Two roundings are exact enough for any
// step count. A fraction of the exponent, which nobody's step counts have, takes one square root
// for each bit. A power of anything below 1 is 0 for exponents from 2^62 on.
FUSEDOPT_HD DoubleDouble exact_power(double base, double exponent) {
  if (exponent != exponent) return {exponent, 0.0};
  constexpr double kGreatest = 4611686018427387904.0;
  const double magnitude = exponent < 0 ? -exponent : exponent;
  const auto whole = static_cast<unsigned long long>(magnitude < kGreatest ? magnitude : kGreatest);
  DoubleDouble result{1.0, 0.0};
  DoubleDouble square{base, 0.0};
  for (auto n = whole; n != 0; n >>= 1) {
    if (n & 1) result = multiply(result, square);
    square = multiply(square, square);
  }
  double fraction = magnitude < kGreatest ? magnitude - static_cast<double>(whole) : 0.0;
  DoubleDouble root{base, 0.0};
  for (double bit = 0.5; fraction != 0 && bit > 1e-18; bit *= 0.5) {
    root = root_of(root);
    if (fraction < bit) continue;
    result = multiply(result, root);
    fraction -= bit;
  }
  if (exponent < 0) return {1.0 / result.high, 0.0};
  return result;
}

// The base isn't negative. The result is not a number where a power of finite numbers would
// overflow.
FUSEDOPT_HD double power(double base, double exponent) {
  if (base != base || exponent != exponent) return base + exponent;
  if (!is_finite(base) || !is_finite(exponent)) {
    if (base == 1.0 || exponent == 0.0) return 1.0;
    return (base > 1.0) == (exponent > 0.0) ? __builtin_inf() : 0.0;
  }
  return exact_power(base, exponent).high;
}

FUSEDOPT_HD double one_minus_power(double base, double exponent) {
  const DoubleDouble result = exact_power(base, exponent);
  return (1.0 - result.high) - result.low;
}

}  // namespace fusedopt
