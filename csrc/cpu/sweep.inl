// The CPU sweep, included once per instruction set, each time inside a namespace and a target
// region. It names no optimizer: Rule is a template, float or double.

template <typename Compute, int kOperands>
struct Tile {
  alignas(64) Compute values[kOperands][kTile];
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

template <Dtype kDtype>
inline void load_tile(typename Storage<kDtype>::Compute* tile, const void* data,
                      const Layout* layout, int k, int64_t begin, int64_t n) {
  using S = Storage<kDtype>;
  const auto* source = static_cast<const typename S::Type*>(data);
  if (layout == nullptr) {
    FUSEDOPT_VECTORIZE
    for (int64_t i = 0; i < n; ++i) tile[i] = S::load(source[begin + i]);
    return;
  }
  for_each_run(*layout, k, begin, n,
               [&](int64_t at, int64_t offset, int64_t stride, int64_t length) {
                 for (int64_t i = 0; i < length; ++i)
                   tile[at + i] = S::load(source[offset + i * stride]);
               });
}

template <Dtype kDtype>
inline void store_tile(const typename Storage<kDtype>::Compute* tile, void* data,
                       const Layout* layout, int k, int64_t begin, int64_t n) {
  using S = Storage<kDtype>;
  auto* target = static_cast<typename S::Type*>(data);
  if (layout == nullptr) {
    FUSEDOPT_VECTORIZE
    for (int64_t i = 0; i < n; ++i) target[begin + i] = S::store(tile[i]);
    return;
  }
  for_each_run(*layout, k, begin, n,
               [&](int64_t at, int64_t offset, int64_t stride, int64_t length) {
                 for (int64_t i = 0; i < length; ++i)
                   target[offset + i * stride] = S::store(tile[at + i]);
               });
}

// The rule over n elements, wherever they lie: `p`, `g` and `s` point at the first.
template <typename Rule, typename Compute, typename Element>
inline void apply(const Rule rule, Element* p, const Element* g, Element* const* s, int64_t n,
                  Compute sign) {
  Element* states[Rule::kStates + 1];
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
    apply<Rule, Compute, Compute>(rule, tile.values[0], tile.values[1], states, n, sign);
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
  apply<Rule, Compute, Element>(rule, at[0], at[1], at + 2, end - begin, sign);
}

template <typename Rule, Dtype kDtype>
void sweep(const Table& table, int64_t begin, int64_t end) {
  constexpr bool kDirect = kDtype == Dtype::kFloat32 || kDtype == Dtype::kFloat64;
  const auto* rules = static_cast<const Rule*>(table.rules);
  for (int64_t i = find_tensor(table, begin); i < table.count; ++i) {
    const TensorEntry& tensor = table.tensors[i];
    if (tensor.start >= end) break;
    const int64_t from = std::max<int64_t>(begin - tensor.start, 0);
    const int64_t to = std::min(end - tensor.start, tensor.numel);
    if (kDirect && tensor.layout < 0 && !table.scaled) {
      if constexpr (kDirect) direct<Rule, kDtype>(tensor, rules[tensor.rule], from, to);
    } else {
      tiled<Rule, kDtype>(table, tensor, rules[tensor.rule], from, to);
    }
  }
}
