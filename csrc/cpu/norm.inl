// Norms of blocks, included once per instruction set, each time inside a namespace and a target
// region. Vectors are as wide as the registers: of wider ones g++ makes code that is slower by far.

#if defined(FUSEDOPT_AVX512)
inline constexpr int kWidth = 8;
#elif defined(FUSEDOPT_F16C)
inline constexpr int kWidth = 4;
#else
inline constexpr int kWidth = 2;
#endif
typedef double Doubles __attribute__((vector_size(kWidth * 8)));
typedef float Floats __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Words __attribute__((vector_size(kWidth * 4)));
typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));

template <Dtype kDtype>
FUSEDOPT_HD Doubles load_lanes(const char* at) {
  if constexpr (kDtype == Dtype::kFloat64) {
    Doubles values;
    memcpy(&values, at, sizeof values);
    return values;
  } else {
    Floats values;
    if constexpr (kDtype == Dtype::kFloat32) {
      memcpy(&values, at, sizeof values);
    } else {
      Halves halves;
      memcpy(&halves, at, sizeof halves);
      if constexpr (kDtype == Dtype::kBFloat16) {
        const Words words = __builtin_convertvector(halves, Words) << 16;
        memcpy(&values, &words, sizeof values);
      } else {
#if defined(FUSEDOPT_F16C)
        __m128i eight = _mm_setzero_si128();
        memcpy(&eight, at, sizeof halves);
        const __m256 floats = _mm256_cvtph_ps(eight);
        memcpy(&values, &floats, sizeof values);
#else
        for (int i = 0; i < kWidth; ++i) values[i] = Storage<kDtype>::load(halves[i]);
#endif
      }
    }
    return __builtin_convertvector(values, Doubles);
  }
}

template <Norm kNorm>
FUSEDOPT_HD void add(Doubles& sum, Doubles x) {
  const Doubles size = x < 0.0 ? -x : x;
  if constexpr (kNorm == Norm::kSquares) sum += x * x;
  if constexpr (kNorm == Norm::kMagnitudes) sum += size;
  if constexpr (kNorm == Norm::kLargest) sum = (size > sum) | (x != x) ? size : sum;
  if constexpr (kNorm == Norm::kSmallest) sum = (size < sum) | (x != x) ? size : sum;
}

// Only float64 has squares for which double has no room. Of other dtypes norm.cpp scales each
// block's sum, and not each element.
template <Dtype kDtype>
FUSEDOPT_HD Doubles scaled(Doubles x, double scale) {
  return kDtype == Dtype::kFloat64 ? x * scale : x;
}

template <Norm kNorm, Dtype kDtype>
void of_block(const char* at, int64_t n, double scale, double* lanes) {
  constexpr int kVectors = kNormLanes / kWidth;
  constexpr int64_t kItem = item_bytes(kDtype);
  Doubles sums[kVectors];
  for (int k = 0; k < kVectors; ++k) sums[k] = Doubles{} + norm_of_none(kNorm);
  for (; n >= kNormLanes; n -= kNormLanes, at += kNormLanes * kItem) {
    for (int k = 0; k < kVectors; ++k) {
      add<kNorm>(sums[k], scaled<kDtype>(load_lanes<kDtype>(at + k * kWidth * kItem), scale));
    }
  }
  if (n > 0) {  // and zeros, or the last element again: they change nothing
    char rest[kNormLanes * kItem] = {};
    memcpy(rest, at, n * kItem);
    for (int64_t i = n; kNorm == Norm::kSmallest && i < kNormLanes; ++i) {
      memcpy(rest + i * kItem, at + (n - 1) * kItem, kItem);
    }
    for (int k = 0; k < kVectors; ++k) {
      add<kNorm>(sums[k], scaled<kDtype>(load_lanes<kDtype>(rest + k * kWidth * kItem), scale));
    }
  }
  memcpy(lanes, sums, sizeof sums);
}

#define FUSEDOPT_NORMS(norm)                                         \
  {of_block<norm, Dtype::kFloat32>, of_block<norm, Dtype::kFloat64>, \
   of_block<norm, Dtype::kBFloat16>, of_block<norm, Dtype::kFloat16>}
inline constexpr OfBlock kOfBlock[kNorms][kDtypes] = {
    FUSEDOPT_NORMS(Norm::kSquares), FUSEDOPT_NORMS(Norm::kMagnitudes),
    FUSEDOPT_NORMS(Norm::kLargest), FUSEDOPT_NORMS(Norm::kSmallest)};
#undef FUSEDOPT_NORMS
