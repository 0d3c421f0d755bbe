// Conversions of 16-bit floats by instructions of x86-64, with the same bits as Storage's load and
// store: a part of the CPU sweep, included once per instruction set.
//
// `load_group` and `store_group` take as many as there are bfloat16 in a register. Those with even
// numbers come first in `values`, which no rule notices, so that nothing is shuffled. bfloat16 are
// rounded in lanes of 16 bits: to nearest means up, if the lower half is more than 0x8000, or equal
// to it and the upper half is odd. The upper half tells a NaN, because arithmetic makes quiet ones
// only. AVX-512's own conversion would take subnormal numbers for 0.

#if defined(FUSEDOPT_F16C)
// Eight float16 at a time, with the same bits as Storage's load and store.
inline void load_eight(float* values, const char* source) {
  _mm256_storeu_ps(values,
                   _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source))));
}

inline void store_eight(const float* values, char* target) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target),
                   _mm256_cvtps_ph(_mm256_loadu_ps(values), _MM_FROUND_TO_NEAREST_INT));
}
#endif

#if defined(FUSEDOPT_GROUPS)
inline constexpr int kGroup = 16;

inline __m256i load_sixteen(const void* source) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(source));
}
inline void store_sixteen(void* target, __m256i halves) {
  _mm256_storeu_si256(static_cast<__m256i*>(target), halves);
}

template <Dtype kDtype>
inline void load_group(float* values, const char* source) {
  if constexpr (kDtype == Dtype::kFloat16) {
    load_eight(values, source);
    load_eight(values + 8, source + 16);
  } else {
    const __m256i pairs = load_sixteen(source);
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    _mm256_storeu_ps(values, _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)));
    _mm256_storeu_ps(values + 8, _mm256_castsi256_ps(_mm256_and_si256(pairs, high)));
  }
}

// The same in memory's order.
inline void load_row(float* values, const char* source) {
  for (int i = 0; i < 16; i += 8) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + 2 * i));
    store_sixteen(values + i, _mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
  }
}

inline void copy_group(void* to, const void* from) {
  store_sixteen(to, load_sixteen(from));
  store_sixteen(static_cast<char*>(to) + 32, load_sixteen(static_cast<const char*>(from) + 32));
}

// Sixteen floats' upper and lower halves, in lanes of 16 bits and in memory's order.
struct Lanes {
  __m256i upper, lower;
};

inline Lanes lanes_of_group(const float* values) {
  const __m256i even = load_sixteen(values);
  const __m256i odd = load_sixteen(values + 8);
  return {_mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa),
          _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa)};
}

// The same of floats in memory's order.
inline Lanes lanes_of_row(const float* values) {
  const __m256i first = load_sixteen(values);
  const __m256i second = load_sixteen(values + 8);
  const __m256i low = _mm256_set1_epi32(0xffff);
  const __m256i upper =
      _mm256_packus_epi32(_mm256_srli_epi32(first, 16), _mm256_srli_epi32(second, 16));
  const __m256i lower =
      _mm256_packus_epi32(_mm256_and_si256(first, low), _mm256_and_si256(second, low));
  return {_mm256_permute4x64_epi64(upper, 0xd8), _mm256_permute4x64_epi64(lower, 0xd8)};
}

inline __m256i magnitude_of(const Lanes& lanes) {
  return _mm256_and_si256(lanes.upper, _mm256_set1_epi16(0x7fff));
}

// 1 where the upper half is to be rounded up, to nearest.
inline __m256i up_to_nearest(const Lanes& lanes) {
  const __m256i is_even = _mm256_andnot_si256(lanes.upper, _mm256_set1_epi16(1));
  return _mm256_srli_epi16(_mm256_subs_epu16(lanes.lower, is_even), 15);
}

inline __m256i rounded_up(const Lanes& lanes, __m256i up) {
  const __m256i is_nan = _mm256_cmpgt_epi16(magnitude_of(lanes), _mm256_set1_epi16(0x7f80));
  return _mm256_blendv_epi8(_mm256_add_epi16(lanes.upper, up), _mm256_set1_epi16(0x7fc0), is_nan);
}

inline __m256i round_lanes(const Lanes& lanes) { return rounded_up(lanes, up_to_nearest(lanes)); }

inline __m256i eight_of(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }

// What the noises of all operands have in common, for sixteen elements of which the first has an
// even index.
inline __m256i noise_of_pairs(const NoiseKey& key, uint32_t index) {
  alignas(32) static constexpr uint32_t kCounts[8] = {0,
                                                      kNoiseFirst,
                                                      2 * kNoiseFirst,
                                                      3 * kNoiseFirst,
                                                      4 * kNoiseFirst,
                                                      5 * kNoiseFirst,
                                                      6 * kNoiseFirst,
                                                      7 * kNoiseFirst};
  const __m256i x =
      _mm256_add_epi32(eight_of((index >> 1) * kNoiseFirst + key.before), load_sixteen(kCounts));
  const __m256i product =
      _mm256_mullo_epi32(_mm256_xor_si256(x, _mm256_srli_epi32(x, 16)), eight_of(kNoiseSecond));
  const __m256i y = _mm256_add_epi32(product, eight_of(key.between));
  return _mm256_xor_si256(y, _mm256_srli_epi32(y, 15));
}

inline __m256i noise_of_group(__m256i pairs, uint32_t factor) {
  const __m256i x = _mm256_mullo_epi32(pairs, eight_of(factor));
  return _mm256_xor_si256(x, _mm256_srli_epi32(x, 16));
}

// Rounds up where the lower half is more than the noise; beyond the largest finite number, whose
// upper half is odd, where the lower half is at least 0x8000.
inline __m256i round_lanes_with(__m256i noise, const Lanes& lanes) {
  const __m256i is_last = _mm256_cmpgt_epi16(magnitude_of(lanes), _mm256_set1_epi16(0x7f7e));
  const __m256i bound = _mm256_blendv_epi8(noise, _mm256_set1_epi16(0x7fff), is_last);
  const __m256i up = _mm256_min_epu16(_mm256_subs_epu16(lanes.lower, bound), _mm256_set1_epi16(1));
  return rounded_up(lanes, up);
}

// engine/format.h's join, of the upper halves and what is to be added to them.
inline __m256i join_eight(__m256i alone, __m256i addend) {
  const __m256i bits = _mm256_add_epi32(alone, addend);
  const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
  const __m256i is_nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
  return _mm256_blendv_epi8(bits, alone, is_nan);
}

// Sixteen floats of which these are the halves.
inline void join_group(float* values, const char* upper, const char* remainder) {
  const __m256i pairs = load_sixteen(upper);
  const __m256i rest = load_sixteen(remainder);
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  const __m256i of_even = _mm256_srai_epi32(_mm256_slli_epi32(rest, 16), 16);
  store_sixteen(values, join_eight(_mm256_slli_epi32(pairs, 16), of_even));
  store_sixteen(values + 8, join_eight(_mm256_and_si256(pairs, high), _mm256_srai_epi32(rest, 16)));
}

inline void split_group(const float* values, char* upper, char* remainder) {
  const Lanes lanes = lanes_of_group(values);
  const __m256i is_nan = _mm256_cmpgt_epi16(magnitude_of(lanes), _mm256_set1_epi16(0x7f80));
  store_sixteen(upper, rounded_up(lanes, _mm256_srli_epi16(lanes.lower, 15)));
  store_sixteen(remainder, _mm256_andnot_si256(is_nan, lanes.lower));
}

template <Dtype kDtype>
inline void store_group(const float* values, char* target) {
  if constexpr (kDtype == Dtype::kFloat16) {
    store_eight(values, target);
    store_eight(values + 8, target + 16);
  } else {
    store_sixteen(target, round_lanes(lanes_of_group(values)));
  }
}
#endif

#if defined(FUSEDOPT_AVX512)
inline constexpr int kGroup = 32;
// All lanes. Without a mask, g++ 12 warns of the headers' undefined operand (its bug 105593).
inline constexpr __mmask16 kWords = 0xffff;

template <Dtype kDtype>
inline void load_group(float* values, const char* source) {
  if constexpr (kDtype == Dtype::kFloat16) {
    for (int i = 0; i < kGroup; i += 16) {
      const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 2 * i));
      _mm512_storeu_ps(values + i, _mm512_maskz_cvtph_ps(kWords, halves));
    }
  } else {
    const __m512i pairs = _mm512_loadu_si512(source);
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    _mm512_storeu_si512(values, _mm512_maskz_slli_epi32(kWords, pairs, 16));
    _mm512_storeu_si512(values + 16, _mm512_and_si512(pairs, high));
  }
}

// Halves of 32 floats.
struct Lanes {
  __m512i upper, lower;
};

inline Lanes lanes_of_group(const float* values) {
  const __m512i even = _mm512_loadu_si512(values);
  const __m512i odd = _mm512_loadu_si512(values + 16);
  const __mmask32 odds = 0xaaaaaaaa;
  return {_mm512_mask_blend_epi16(odds, _mm512_maskz_srli_epi32(kWords, even, 16), odd),
          _mm512_mask_blend_epi16(odds, even, _mm512_maskz_slli_epi32(kWords, odd, 16))};
}

inline __m512i magnitude_of(const Lanes& lanes) {
  return _mm512_and_si512(lanes.upper, _mm512_set1_epi16(0x7fff));
}

inline __mmask32 is_nan(const Lanes& lanes) {
  return _mm512_cmpgt_epi16_mask(magnitude_of(lanes), _mm512_set1_epi16(0x7f80));
}

inline __m512i without_nan(const Lanes& lanes, __m512i rounded) {
  return _mm512_mask_blend_epi16(is_nan(lanes), rounded, _mm512_set1_epi16(0x7fc0));
}

inline __m512i round_lanes(const Lanes& lanes) {
  const __m512i is_even = _mm512_maskz_andnot_epi32(kWords, lanes.upper, _mm512_set1_epi16(1));
  const __m512i up = _mm512_srli_epi16(_mm512_subs_epu16(lanes.lower, is_even), 15);
  return without_nan(lanes, _mm512_add_epi16(lanes.upper, up));
}

inline __m512i all_of(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }

// As the one for AVX2, for 32 elements.
inline __m512i noise_of_pairs(const NoiseKey& key, uint32_t index) {
  const __m512i numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i counts = _mm512_mullo_epi32(numbers, all_of(kNoiseFirst));
  const __m512i x = _mm512_add_epi32(all_of((index >> 1) * kNoiseFirst + key.before), counts);
  const __m512i product = _mm512_mullo_epi32(
      _mm512_xor_si512(x, _mm512_maskz_srli_epi32(kWords, x, 16)), all_of(kNoiseSecond));
  const __m512i y = _mm512_add_epi32(product, all_of(key.between));
  return _mm512_xor_si512(y, _mm512_maskz_srli_epi32(kWords, y, 15));
}

inline __m512i noise_of_group(__m512i pairs, uint32_t factor) {
  const __m512i x = _mm512_mullo_epi32(pairs, all_of(factor));
  return _mm512_xor_si512(x, _mm512_maskz_srli_epi32(kWords, x, 16));
}

// As the one for AVX2, above.
inline __m512i round_lanes_with(__m512i noise, const Lanes& lanes) {
  const __mmask32 is_last = _mm512_cmpgt_epi16_mask(magnitude_of(lanes), _mm512_set1_epi16(0x7f7e));
  const __m512i bound = _mm512_mask_blend_epi16(is_last, noise, _mm512_set1_epi16(0x7fff));
  const __mmask32 is_up = _mm512_cmpgt_epu16_mask(lanes.lower, bound);
  return without_nan(lanes,
                     _mm512_mask_add_epi16(lanes.upper, is_up, lanes.upper, _mm512_set1_epi16(1)));
}

inline __m512i join_sixteen(__m512i alone, __m512i addend) {
  const __m512i bits = _mm512_add_epi32(alone, addend);
  const __m512i magnitude = _mm512_and_si512(bits, all_of(0x7fffffff));
  const __mmask16 is_nan = _mm512_cmpgt_epi32_mask(magnitude, all_of(0x7f800000));
  return _mm512_mask_blend_epi32(is_nan, bits, alone);
}

// Thirty-two floats of which these are the halves.
inline void join_group(float* values, const char* upper, const char* remainder) {
  const __m512i pairs = _mm512_loadu_si512(upper);
  const __m512i rest = _mm512_loadu_si512(remainder);
  const __m512i of_even =
      _mm512_maskz_srai_epi32(kWords, _mm512_maskz_slli_epi32(kWords, rest, 16), 16);
  _mm512_storeu_si512(values, join_sixteen(_mm512_maskz_slli_epi32(kWords, pairs, 16), of_even));
  _mm512_storeu_si512(values + 16, join_sixteen(_mm512_and_si512(pairs, all_of(0xffff0000)),
                                                _mm512_maskz_srai_epi32(kWords, rest, 16)));
}

inline void split_group(const float* values, char* upper, char* remainder) {
  const Lanes lanes = lanes_of_group(values);
  const __m512i up = _mm512_srli_epi16(lanes.lower, 15);
  _mm512_storeu_si512(upper, without_nan(lanes, _mm512_add_epi16(lanes.upper, up)));
  _mm512_storeu_si512(remainder, _mm512_maskz_mov_epi16(~is_nan(lanes), lanes.lower));
}

template <Dtype kDtype>
inline void store_group(const float* values, char* target) {
  if constexpr (kDtype == Dtype::kFloat16) {
    for (int i = 0; i < kGroup; i += 16) {
      const __m256i halves =
          _mm512_maskz_cvtps_ph(kWords, _mm512_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + 2 * i), halves);
    }
  } else {
    _mm512_storeu_si512(target, round_lanes(lanes_of_group(values)));
  }
}
#endif
