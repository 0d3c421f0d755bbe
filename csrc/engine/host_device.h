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

FUSEDOPT_HD double fused_multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

// torch.maximum: a NaN on either side wins.
template <typename T>
FUSEDOPT_HD T maximum(T a, T b) {
  return (a > b || a != a) ? a : b;
}

// An unevaluated sum of two doubles: about 106 bits of mantissa.
struct DoubleDouble {
  double high;
  double low;
};

FUSEDOPT_HD DoubleDouble multiply(DoubleDouble a, DoubleDouble b) {
  const double product = a.high * b.high;
  const double error =
      fused_multiply_add(a.high, b.high, -product) + (a.high * b.low + a.low * b.high);
  const double high = product + error;
  return {high, error - (high - product)};
}

// 1 - base^exponent, by squaring in double-double: libm's and CUDA's pow differ in their last bits,
// and squaring in plain double loses one bit per doubling. Rounds twice; exact enough for any step
// count. Step counts are whole; a fractional exponent is cut off.
FUSEDOPT_HD double one_minus_power(double base, double exponent) {
  DoubleDouble result{1.0, 0.0};
  DoubleDouble square{base, 0.0};
  for (auto n = static_cast<unsigned long long>(exponent < 0 ? 0 : exponent); n != 0; n >>= 1) {
    if (n & 1) result = multiply(result, square);
    square = multiply(square, square);
  }
  return (1.0 - result.high) - result.low;
}

}  // namespace fusedopt
