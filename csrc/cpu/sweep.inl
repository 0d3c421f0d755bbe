// The CPU sweep, included once per instruction set, each time inside a namespace and a target
// region. It names no optimizer: Rule is a template, float or double.

template <typename Compute, int kOperands>
struct Tile {
  alignas(64) Compute values[kOperands][kTile];
};

template <typename C>
struct TileAccess {
  using Compute = C;
  using Type = C;
};

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

#if defined(FUSEDOPT_BLOCKS)
// Sixteen 16-bit floats at a time, with the same bits as Storage's load and store. Those with even
// numbers come first in `values`, which no rule notices: bfloat16 then needs no shuffling.
template <Dtype kDtype>
inline void load_sixteen(float* values, const char* source) {
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

// Sixteen floats, as load_sixteen orders them, to the nearest bfloat16. They are rounded in lanes
// of 16 bits: up, if the lower half is more than 0x8000, or equal to it and the upper half is odd.
// The upper half tells a NaN: arithmetic makes quiet ones only.
inline __m256i round_sixteen(const float* values) {
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
inline void store_sixteen(const float* values, char* target) {
  if constexpr (kDtype == Dtype::kFloat16) {
    store_eight(values, target);
    store_eight(values + 8, target + 16);
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), round_sixteen(values));
  }
}
#endif

// How many of n float16 are done eight at a time.
inline int64_t load_eights([[maybe_unused]] float* tile, [[maybe_unused]] const void* source,
                           [[maybe_unused]] int64_t n) {
  int64_t i = 0;
#if defined(FUSEDOPT_F16C)
  for (; i + 8 <= n; i += 8) load_eight(tile + i, static_cast<const char*>(source) + 2 * i);
#endif
  return i;
}

inline int64_t store_eights([[maybe_unused]] const float* tile, [[maybe_unused]] void* target,
                            [[maybe_unused]] int64_t n) {
  int64_t i = 0;
#if defined(FUSEDOPT_F16C)
  for (; i + 8 <= n; i += 8) store_eight(tile + i, static_cast<char*>(target) + 2 * i);
#endif
  return i;
}

template <Dtype kDtype>
inline constexpr bool kHalf = kDtype == Dtype::kFloat16 || kDtype == Dtype::kBFloat16;

// n elements side by side.
template <Dtype kDtype>
__attribute__((noinline)) void load_tile(typename Storage<kDtype>::Compute* tile,
                                         const typename Storage<kDtype>::Type* source, int64_t n) {
  using S = Storage<kDtype>;
  int64_t done = 0;
  if constexpr (kDtype == Dtype::kFloat16) done = load_eights(tile, source, n);
  FUSEDOPT_VECTORIZE
  for (int64_t i = done; i < n; ++i) tile[i] = S::load(source[i]);
}

template <Dtype kDtype>
__attribute__((noinline)) void store_tile(const typename Storage<kDtype>::Compute* tile,
                                          typename Storage<kDtype>::Type* target, int64_t n) {
  using S = Storage<kDtype>;
  int64_t done = 0;
  if constexpr (kDtype == Dtype::kFloat16) done = store_eights(tile, target, n);
  FUSEDOPT_VECTORIZE
  for (int64_t i = done; i < n; ++i) target[i] = S::store(tile[i]);
}

// The rule over n elements, wherever they lie: `p`, `g` and `s` point at the first.
// Access::Type is the element in memory. (Not a template argument: its alignment would be lost.)
// Not inlined: gcc 12 then vectorises it for every rule, and the objects are half as large.
template <typename Rule, typename Access>
__attribute__((noinline)) void apply(const Rule& of, typename Access::Type* p,
                                     const typename Access::Type* g,
                                     typename Access::Type* const* s, int64_t n,
                                     typename Access::Compute sign) {
  using Compute = typename Access::Compute;
  const Rule rule = of;  // no store below can change it
  typename Access::Type* states[Rule::kStates + 1];
  for (int k = 0; k < Rule::kStates; ++k) states[k] = s[k];
  FUSEDOPT_VECTORIZE
  for (int64_t i = 0; i < n; ++i) {
    Compute param = p[i];
    Compute state[Rule::kStates + 1];
    for (int k = 0; k < Rule::kStates; ++k) state[k] = states[k][i];
    rule(param, sign * g[i], state);
    p[i] = param;
    for (int k = 0; k < Rule::kStates; ++k) states[k][i] = state[k];
  }
}

// Short tensors lie scattered, where the hardware doesn't foresee them. Of a longer one it follows
// the rest.
template <typename Rule, Dtype kDtype>
inline void prefetch(const TensorEntry& tensor) {
  const int64_t bytes =
      std::min<int64_t>(tensor.numel * sizeof(typename Storage<kDtype>::Type), kPrefetchBytes);
  for (int k = 0; k < 2 + Rule::kStates; ++k) {
    const char* operand = static_cast<const char*>(tensor.operands[k]);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(operand + at, 1);
  }
}

// All operands pass through the same load instruction, so the hardware sees no stream in them.
template <int kOperands>
inline void prefetch_tile(const TensorEntry& tensor, int64_t begin, int64_t item) {
  for (int k = 0; k < kOperands; ++k) {
    const char* operand = static_cast<const char*>(tensor.operands[k]) + begin * item;
    for (int64_t at = 0; at < kTile * item; at += 64) __builtin_prefetch(operand + at, 1);
  }
}

// Elements [begin, end) of one tensor through a tile: low precision, a gradient scale.
template <typename Rule, Dtype kDtype>
inline void tiled(const Table& table, const TensorEntry& tensor, const Rule& rule, int64_t begin,
                  int64_t end) {
  using Element = typename Storage<kDtype>::Type;
  using Compute = typename Storage<kDtype>::Compute;
  constexpr int kOperands = 2 + Rule::kStates;
  const Compute sign = tensor.maximize ? Compute(-1) : Compute(1);
  const auto scale = Compute(table.grad_scale);
  Tile<Compute, kOperands> tile;
  Compute* states[Rule::kStates + 1];
  for (int k = 0; k < Rule::kStates; ++k) states[k] = tile.values[2 + k];
  Element* operands[kOperands];
  for (int k = 0; k < kOperands; ++k) operands[k] = static_cast<Element*>(tensor.operands[k]);
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t n = std::min<int64_t>(kTile, end - at);
    if (at + kTilesAhead * kTile < end) {
      prefetch_tile<kOperands>(tensor, at + kTilesAhead * kTile, sizeof(Element));
    }
    for (int k = 0; k < kOperands; ++k) load_tile<kDtype>(tile.values[k], operands[k] + at, n);
    if (table.scaled) {
      for (int64_t i = 0; i < n; ++i) tile.values[1][i] /= scale;
      store_tile<kDtype>(tile.values[1], operands[1] + at, n);
    }
    apply<Rule, TileAccess<Compute>>(rule, tile.values[0], tile.values[1], states, n, sign);
    for (int k = 0; k < kOperands; ++k) {
      if (k != 1) store_tile<kDtype>(tile.values[k], operands[k] + at, n);
    }
  }
}

// Elements [begin, end) of one tensor, in place: float32 and float64, one dense layout.
template <typename Rule, Dtype kDtype>
inline void direct(const TensorEntry& tensor, const Rule& rule, int64_t begin, int64_t end) {
  using Element = typename Storage<kDtype>::Type;
  using Compute = typename Storage<kDtype>::Compute;
  Element* at[kMaxOperands];
  for (int k = 0; k < 2 + Rule::kStates; ++k)
    at[k] = static_cast<Element*>(tensor.operands[k]) + begin;
  const Compute sign = tensor.maximize ? Compute(-1) : Compute(1);
  apply<Rule, Storage<kDtype>>(rule, at[0], at[1], at + 2, end - begin, sign);
}

// 16-bit floats, one dense layout: blocks so short that the conversions of one overlap the
// divisions of another. Returns where the rest begins. See tuning.h for the gain.
template <typename Rule, Dtype kDtype>
inline int64_t blocks([[maybe_unused]] const TensorEntry& tensor, [[maybe_unused]] const Rule& of,
                      int64_t begin, [[maybe_unused]] int64_t end) {
#if defined(FUSEDOPT_BLOCKS)
  constexpr int kOperands = 2 + Rule::kStates;
  constexpr int kBlock = kBlockElements<Rule::kStates>;
  const Rule rule = of;
  const float sign = tensor.maximize ? -1.0f : 1.0f;
  char* at[kOperands];
  for (int k = 0; k < kOperands; ++k) at[k] = static_cast<char*>(tensor.operands[k]) + 2 * begin;
#pragma GCC unroll 2  // 3 % less for two states in bfloat16
  for (; begin + kBlock <= end; begin += kBlock) {
    alignas(64) float values[kOperands][kBlock];
    for (int k = 0; k < kOperands; ++k) {
      __builtin_prefetch(at[k] + kBlocksAhead * 2 * kBlock, 1);
      for (int i = 0; i < kBlock; i += 16) load_sixteen<kDtype>(values[k] + i, at[k] + 2 * i);
    }
    FUSEDOPT_VECTORIZE
    for (int i = 0; i < kBlock; ++i) {
      float state[Rule::kStates + 1];
      for (int k = 0; k < Rule::kStates; ++k) state[k] = values[2 + k][i];
      rule(values[0][i], sign * values[1][i], state);
      for (int k = 0; k < Rule::kStates; ++k) values[2 + k][i] = state[k];
    }
    for (int k = 0; k < kOperands; ++k) {
      for (int i = 0; k != 1 && i < kBlock; i += 16) {
        store_sixteen<kDtype>(values[k] + i, at[k] + 2 * i);
      }
      at[k] += 2 * kBlock;
    }
  }
#endif
  return begin;
}

// Elements [begin, end) of a tensor whose operands share one dense layout.
template <typename Rule, Dtype kDtype>
inline void dense(const Table& table, const TensorEntry& tensor, const Rule& rule, int64_t begin,
                  int64_t end) {
  if constexpr (kHalf<kDtype>) {
    if (!table.scaled) begin = blocks<Rule, kDtype>(tensor, rule, begin, end);
  } else if (!table.scaled) {
    return direct<Rule, kDtype>(tensor, rule, begin, end);
  }
  tiled<Rule, kDtype>(table, tensor, rule, begin, end);
}

#include "cpu/strided.inl"

template <typename Rule, Dtype kDtype>
void sweep(const Table& table, int64_t begin, int64_t end) {
  const auto* rules = static_cast<const Rule*>(table.rules);
  for (int64_t i = find_tensor(table, begin); i < table.count; ++i) {
    const TensorEntry& tensor = table.tensors[i];
    if (tensor.start >= end) break;
    if (i + kSweepAhead < table.count) prefetch<Rule, kDtype>(table.tensors[i + kSweepAhead]);
    const int64_t from = std::max<int64_t>(begin - tensor.start, 0);
    const int64_t to = std::min(end - tensor.start, tensor.numel);
    const Rule& rule = rules[tensor.rule];
    if (tensor.layout < 0) {
      dense<Rule, kDtype>(table, tensor, rule, from, to);
    } else {
      strided<Rule, kDtype>(table, tensor, rule, from, to);
    }
  }
}
