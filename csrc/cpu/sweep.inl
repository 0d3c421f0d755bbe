// The CPU sweep, included once per instruction set, each time inside a namespace and a target
// region. It names no optimizer: Rule is a template, float or double.

template <typename Compute, int kOperands>
struct Tile {
  alignas(64) Compute values[kOperands][kTile];
};

// How elements lie that need no conversion. In memory and in tiles alike, so that one function
// steps both.
template <typename Compute>
using Plain = Storage<sizeof(Compute) == 4 ? Dtype::kFloat32 : Dtype::kFloat64>;

#include "cpu/half.inl"

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
__attribute__((noinline)) void tiled(const Table& table, const TensorEntry& tensor,
                                     const Rule& rule, int64_t begin, int64_t end) {
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
    apply<Rule, Plain<Compute>>(rule, tile.values[0], tile.values[1], states, n, sign);
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
  apply<Rule, Plain<Compute>>(rule, at[0], at[1], at + 2, end - begin, sign);
}

// 16-bit floats, one dense layout: blocks so short that the conversions of one overlap the
// divisions of another. Returns where the rest begins. See tuning.h for the gain.
template <typename Rule, Dtype kDtype>
__attribute__((noinline)) int64_t blocks([[maybe_unused]] const TensorEntry& tensor,
                                         [[maybe_unused]] const Rule& of, int64_t begin,
                                         [[maybe_unused]] int64_t end) {
#if defined(FUSEDOPT_BLOCKS)
  constexpr int kOperands = 2 + Rule::kStates;
  constexpr int kBlock = kBlockGroups<Rule::kStates> * kGroup;
  const Rule rule = of;
  const float sign = tensor.maximize ? -1.0f : 1.0f;
  char* at[kOperands];
  for (int k = 0; k < kOperands; ++k) at[k] = static_cast<char*>(tensor.operands[k]) + 2 * begin;
#pragma GCC unroll 2  // 3 % less for two states in bfloat16
  for (; begin + kBlock <= end; begin += kBlock) {
    alignas(64) float values[kOperands][kBlock];
    for (int k = 0; k < kOperands; ++k) {
      for (int i = 0; i < 2 * kBlock; i += 64) __builtin_prefetch(at[k] + kBlockBytesAhead + i, 1);
      for (int i = 0; i < kBlock; i += kGroup) load_group<kDtype>(values[k] + i, at[k] + 2 * i);
    }
    FUSEDOPT_VECTORIZE
    for (int i = 0; i < kBlock; ++i) {
      float state[Rule::kStates + 1];
      for (int k = 0; k < Rule::kStates; ++k) state[k] = values[2 + k][i];
      rule(values[0][i], sign * values[1][i], state);
      for (int k = 0; k < Rule::kStates; ++k) values[2 + k][i] = state[k];
    }
    for (int k = 0; k < kOperands; ++k) {
      for (int i = 0; k != 1 && i < kBlock; i += kGroup) {
        store_group<kDtype>(values[k] + i, at[k] + 2 * i);
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
      static constexpr Stepper kStepper = make_stepper<Rule, kDtype>();
      strided(table, tensor, kStepper, &rule, from, to);
    }
  }
}
