// Conversions of 16-bit floats by instructions of x86-64, with the same bits as Storage's load and
// store: a part of the CPU sweep, included once per instruction set.
//
// `load_group` and `store_group` take as many as there are bfloat16 in a register. Of those, the
// ones with even numbers come first in `values`, which no rule notices: then nothing is shuffled.
// `round_group` rounds to the nearest bfloat16 in lanes of 16 bits: up, if the lower half is more
// than 0x8000, or equal to it and the upper half is odd. The upper half tells a NaN: arithmetic
// makes quiet ones only. AVX-512's own conversion would take subnormal numbers for 0.

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

#if defined(FUSEDOPT_BLOCKS) && !defined(FUSEDOPT_AVX512)
inline constexpr int kGroup = 16;

template <Dtype kDtype>
inline void load_group(float* values, const char* source) {
  if constexpr (kDtype == Dtype::kFloat16) {
    load_eight(values, source);
    load_eight(values + 8, source + 16);
  } else {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    _mm256_storeu_ps(values, _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)));
    _mm256_storeu_ps(values + 8, _mm256_castsi256_ps(_mm256_and_si256(pairs, high)));
  }
}

inline __m256i round_group(const float* values) {
  const __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  const __m256i odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + 8));
  const __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
  const __m256i lower = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
  const __m256i is_even = _mm256_andnot_si256(upper, _mm256_set1_epi16(1));
  const __m256i up = _mm256_srli_epi16(_mm256_subs_epu16(lower, is_even), 15);
  const __m256i magnitude = _mm256_and_si256(upper, _mm256_set1_epi16(0x7fff));
  const __m256i is_nan = _mm256_cmpgt_epi16(magnitude, _mm256_set1_epi16(0x7f80));
  return _mm256_blendv_epi8(_mm256_add_epi16(upper, up), _mm256_set1_epi16(0x7fc0), is_nan);
}

template <Dtype kDtype>
inline void store_group(const float* values, char* target) {
  if constexpr (kDtype == Dtype::kFloat16) {
    store_eight(values, target);
    store_eight(values + 8, target + 16);
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), round_group(values));
  }
}
#endif

#if defined(FUSEDOPT_AVX512)
inline constexpr int kGroup = 32;
// All of them. Without a mask, g++ 12 warns of the headers' undefined operand (its bug 105593).
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

inline __m512i round_group(const float* values) {
  const __m512i even = _mm512_loadu_si512(values);
  const __m512i odd = _mm512_loadu_si512(values + 16);
  const __mmask32 odds = 0xaaaaaaaa;
  const __m512i upper =
      _mm512_mask_blend_epi16(odds, _mm512_maskz_srli_epi32(kWords, even, 16), odd);
  const __m512i lower =
      _mm512_mask_blend_epi16(odds, even, _mm512_maskz_slli_epi32(kWords, odd, 16));
  const __m512i is_even = _mm512_maskz_andnot_epi32(kWords, upper, _mm512_set1_epi16(1));
  const __m512i up = _mm512_srli_epi16(_mm512_subs_epu16(lower, is_even), 15);
  const __m512i magnitude = _mm512_and_si512(upper, _mm512_set1_epi16(0x7fff));
  const __mmask32 is_nan = _mm512_cmpgt_epi16_mask(magnitude, _mm512_set1_epi16(0x7f80));
  return _mm512_mask_blend_epi16(is_nan, _mm512_add_epi16(upper, up), _mm512_set1_epi16(0x7fc0));
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
    _mm512_storeu_si512(target, round_group(values));
  }
}
#endif
