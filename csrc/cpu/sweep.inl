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

// Calls run(tile_index, offset, stride, length) for each run of the innermost dimension within
// elements [begin, begin + n) of operand `k`.
template <typename Run>
inline void for_each_run(const Layout& layout, int k, int64_t begin, int64_t n, const Run& run) {
  const int64_t* strides = layout.strides + int64_t(k) * layout.ndim;
  const int last = layout.ndim - 1;
  for (int64_t done = 0; done < n;) {
    int64_t rest = begin + done;
    const int64_t inner = rest % layout.sizes[last];
    rest /= layout.sizes[last];
    int64_t offset = inner * strides[last];
    for (int d = last - 1; d >= 0; --d) {
      offset += (rest % layout.sizes[d]) * strides[d];
      rest /= layout.sizes[d];
    }
    const int64_t length = std::min(layout.sizes[last] - inner, n - done);
    run(done, offset, strides[last], length);
    done += length;
  }
}

// float16 in hardware, eight at a time, with the same bits as Storage<kFloat16>: how many of n are
// done. A rule with two states, in cache, on an EPYC Milan with AVX2 and g++ 12: 1.1 ns per element
// with it, 3.2 without.
inline int64_t load_halves([[maybe_unused]] float* tile, [[maybe_unused]] const void* source,
                           [[maybe_unused]] int64_t n) {
  int64_t i = 0;
#if defined(FUSEDOPT_F16C)
  for (; i + 8 <= n; i += 8) {
    const char* at = static_cast<const char*>(source) + i * 2;
    _mm256_storeu_ps(tile + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
  }
#endif
  return i;
}

inline int64_t store_halves([[maybe_unused]] const float* tile, [[maybe_unused]] void* target,
                            [[maybe_unused]] int64_t n) {
  int64_t i = 0;
#if defined(FUSEDOPT_F16C)
  for (; i + 8 <= n; i += 8) {
    char* at = static_cast<char*>(target) + i * 2;
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(tile + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), halves);
  }
#endif
  return i;
}

template <Dtype kDtype>
__attribute__((noinline)) void load_tile(typename Storage<kDtype>::Compute* tile, const void* data,
                                         const Layout* layout, int k, int64_t begin, int64_t n) {
  using S = Storage<kDtype>;
  const typename S::Type* source =
      static_cast<const typename S::Type*>(data);  // auto loses the alignment
  if (layout == nullptr) {
    int64_t done = 0;
    if constexpr (kDtype == Dtype::kFloat16) done = load_halves(tile, source + begin, n);
    FUSEDOPT_VECTORIZE
    for (int64_t i = done; i < n; ++i) tile[i] = S::load(source[begin + i]);
    return;
  }
  for_each_run(*layout, k, begin, n,
               [&](int64_t at, int64_t offset, int64_t stride, int64_t length) {
                 for (int64_t i = 0; i < length; ++i)
                   tile[at + i] = S::load(source[offset + i * stride]);
               });
}

template <Dtype kDtype>
__attribute__((noinline)) void store_tile(const typename Storage<kDtype>::Compute* tile, void* data,
                                          const Layout* layout, int k, int64_t begin, int64_t n) {
  using S = Storage<kDtype>;
  typename S::Type* target = static_cast<typename S::Type*>(data);
  if (layout == nullptr) {
    int64_t done = 0;
    if constexpr (kDtype == Dtype::kFloat16) done = store_halves(tile, target + begin, n);
    FUSEDOPT_VECTORIZE
    for (int64_t i = done; i < n; ++i) target[begin + i] = S::store(tile[i]);
    return;
  }
  for_each_run(*layout, k, begin, n,
               [&](int64_t at, int64_t offset, int64_t stride, int64_t length) {
                 for (int64_t i = 0; i < length; ++i)
                   target[offset + i * stride] = S::store(tile[at + i]);
               });
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

// Elements [begin, end) of one tensor through a tile: low precision, foreign strides, a gradient
// scale.
template <typename Rule, Dtype kDtype>
inline void tiled(const Table& table, const TensorEntry& tensor, const Rule& rule, int64_t begin,
                  int64_t end) {
  using Compute = typename Storage<kDtype>::Compute;
  constexpr int kOperands = 2 + Rule::kStates;
  const Layout* layout = tensor.layout < 0 ? nullptr : &table.layouts[tensor.layout];
  const Compute sign = tensor.maximize ? Compute(-1) : Compute(1);
  const auto scale = Compute(table.grad_scale);
  Tile<Compute, kOperands> tile;
  Compute* states[Rule::kStates + 1];
  for (int k = 0; k < Rule::kStates; ++k) states[k] = tile.values[2 + k];
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t n = std::min<int64_t>(kTile, end - at);
    for (int k = 0; k < kOperands; ++k) {
      load_tile<kDtype>(tile.values[k], tensor.operands[k], layout, k, at, n);
    }
    if (table.scaled) {
      for (int64_t i = 0; i < n; ++i) tile.values[1][i] /= scale;
      store_tile<kDtype>(tile.values[1], tensor.operands[1], layout, 1, at, n);
    }
    apply<Rule, TileAccess<Compute>>(rule, tile.values[0], tile.values[1], states, n, sign);
    for (int k = 0; k < kOperands; ++k) {
      if (k != 1) store_tile<kDtype>(tile.values[k], tensor.operands[k], layout, k, at, n);
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

template <typename Rule, Dtype kDtype>
void sweep(const Table& table, int64_t begin, int64_t end) {
  constexpr bool kDirect = kDtype == Dtype::kFloat32 || kDtype == Dtype::kFloat64;
  const auto* rules = static_cast<const Rule*>(table.rules);
  for (int64_t i = find_tensor(table, begin); i < table.count; ++i) {
    const TensorEntry& tensor = table.tensors[i];
    if (tensor.start >= end) break;
    if (i + kSweepAhead < table.count) prefetch<Rule, kDtype>(table.tensors[i + kSweepAhead]);
    const int64_t from = std::max<int64_t>(begin - tensor.start, 0);
    const int64_t to = std::min(end - tensor.start, tensor.numel);
    if (kDirect && tensor.layout < 0 && !table.scaled) {
      if constexpr (kDirect) direct<Rule, kDtype>(tensor, rules[tensor.rule], from, to);
    } else {
      tiled<Rule, kDtype>(table, tensor, rules[tensor.rule], from, to);
    }
  }
}
