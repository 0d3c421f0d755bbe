// Builds the CPU kernels of one rule: the sweep once per instruction set and dtype, behind one
// table of pointers.
//
// Instruction sets are target regions in namespaces of their own, never compiler flags: templates
// compiled under different flags but with one name get merged by the linker, and AVX2 code ends up
// on the baseline path.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/kernel.h"
#include "engine/dtype.h"
#include "engine/table.h"
#include "engine/tuning.h"

#if defined(__clang__)
#define FUSEDOPT_VECTORIZE _Pragma("clang loop vectorize(assume_safety)")
#else
#define FUSEDOPT_VECTORIZE _Pragma("GCC ivdep")
#endif

namespace fusedopt::cpu {

// Elements of one operand that lie side by side.
struct Piece {
  char* at;
  char* remainder;  // of a split number
  NoiseKey noise;
  uint32_t factor;  // of noise
  uint32_t index;   // of the first one, for noise
};

namespace baseline {
#include "cpu/sweep.inl"
}

#if defined(__x86_64__)
#define FUSEDOPT_F16C

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif
#define FUSEDOPT_BLOCKS
#define FUSEDOPT_GROUPS
namespace avx2 {
#include "cpu/sweep.inl"
}
#undef FUSEDOPT_GROUPS
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define FUSEDOPT_AVX512
namespace avx512 {
#include "cpu/sweep.inl"
}
#undef FUSEDOPT_AVX512
#undef FUSEDOPT_BLOCKS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__

template <typename Options>
Options unpack(const double* numbers) {
  Options options;
  static_assert(sizeof options % sizeof(double) == 0);
  std::copy_n(numbers, sizeof options / sizeof(double), reinterpret_cast<double*>(&options));
  return options;
}

template <typename Rule>
bool prepare(const double* options, const Counts& counts, double largest, void* rule) {
  const auto unpacked = unpack<typename Rule::Options>(options);
  return (new (rule) Rule(make_rule<Rule>(unpacked, counts)))->valid(largest);
}

template <typename Options>
void advance_counts(const double* options, Counts& counts) {
  advance(unpack<Options>(options), counts);
}

#define FUSEDOPT_SWEEPS(isa)                                                \
  {isa::sweep<Float, Dtype::kFloat32>, isa::sweep<Double, Dtype::kFloat64>, \
   isa::sweep<Float, Dtype::kBFloat16>, isa::sweep<Float, Dtype::kFloat16>}

// From one rule, for float and for double.
template <typename Float, typename Double>
constexpr Kernel make_kernel() {
  static_assert(Float::kStates <= kMaxStates && Double::kStates == Float::kStates);
  constexpr int kScalars = kScalarsOf<typename Float::Options>;
  static_assert(kScalars <= kMaxScalars);
  return {
      Float::kStates,
      kScalars,
      sizeof(typename Float::Options) / sizeof(double),
      {sizeof(Float), sizeof(Double)},
      {prepare<Float>, prepare<Double>},
      advance_counts<typename Float::Options>,
      {
          FUSEDOPT_SWEEPS(baseline),
#if defined(__x86_64__)
          FUSEDOPT_SWEEPS(avx2),
          FUSEDOPT_SWEEPS(avx512),
#endif
      },
  };
}

}  // namespace fusedopt::cpu
