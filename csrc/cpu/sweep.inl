// The CPU sweep, included once per instruction set, each time inside a namespace and a target
// region. It names no optimizer: Rule is a template, float or double.

// How elements lie that need no conversion, in memory and in tiles alike, so that one function
// steps both.
template <typename Compute>
using Plain = Storage<sizeof(Compute) == 4 ? Dtype::kFloat32 : Dtype::kFloat64>;

template <typename Compute>
inline constexpr Format kPlainFormat = sizeof(Compute) == 4 ? Format::kFloat32 : Format::kFloat64;

#include "cpu/half.inl"

template <Dtype kDtype>
inline constexpr bool kHalf = kDtype == Dtype::kFloat16 || kDtype == Dtype::kBFloat16;

#include "cpu/codec.inl"

// The rule at element i. Access::Type is the element in memory. (Not a template argument: its
// alignment would be lost.)
template <typename Access, typename Rule>
inline __attribute__((always_inline)) void step_element(const Rule& rule, typename Access::Type* p,
                                                        typename Access::Compute grad,
                                                        typename Access::Type* const* states,
                                                        int64_t i) {
  typename Access::Compute param = p[i];
  typename Access::Compute state[Rule::kStates + 1];
  for (int k = 0; k < Rule::kStates; ++k) state[k] = states[k][i];
  rule(param, grad, state);
  p[i] = param;
  for (int k = 0; k < Rule::kStates; ++k) states[k][i] = state[k];
}

// The rule over n elements of operands that lie as they are computed with, from element `begin` on.
// Not inlined: gcc 12 then vectorises it for every rule, and the objects are half as large.
template <typename Rule, typename Compute>
__attribute__((noinline)) void apply(const void* of, void* const* operands, int64_t begin,
                                     int64_t n, double of_gradient) {
  using Element = typename Plain<Compute>::Type;
  const Rule rule = *static_cast<const Rule*>(of);  // no store below can change it
  const auto factor = static_cast<Compute>(of_gradient);
  Element* p = static_cast<Element*>(operands[kParam]) + begin;
  const Element* g = static_cast<const Element*>(operands[kGrad]) + begin;
  Element* states[Rule::kStates + 1];
  for (int k = 0; k < Rule::kStates; ++k) {
    states[k] = static_cast<Element*>(operands[kFirstState + k]) + begin;
  }
  FUSEDOPT_VECTORIZE
  for (int64_t i = 0; i < n; ++i) step_element<Plain<Compute>>(rule, p, factor * g[i], states, i);
}

// Asks for a tensor's first bytes, because the hardware doesn't foresee where short tensors lie. It
// follows the rest of a longer one by itself.
inline void prefetch(const TensorEntry& tensor, const Stepper& stepper) {
  for (int k = 0; k < stepper.operands; ++k) {
    const int64_t bytes = std::min<int64_t>(tensor.numel * stepper.item(k), kPrefetchBytes);
    const char* operand = static_cast<const char*>(tensor.operands[k]);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(operand + at, 1);
  }
  asm volatile("");  // or g++ 12 drops the call: torch/prefetch.h
}

// The operands from element `at` on.
inline void find_pieces(const Table& table, const TensorEntry& tensor, const Stepper& stepper,
                        int64_t at, Piece* pieces) {
  for (int k = 0; k < stepper.operands; ++k) {
    pieces[k].at = static_cast<char*>(tensor.operands[k]) + at * stepper.item(k);
  }
  if (!is_split(table)) return;
  char* remainder = static_cast<char*>(tensor.operands[stepper.operands]);
  pieces[kParam].remainder = remainder + at * kRemainderBytes;
}

// Sets the noise of the pieces that begin with element `at`. Returns for how many of n elements
// that holds, because the key is another where an index's upper half changes.
inline int64_t find_noise(const Table& table, const TensorEntry& tensor, const Stepper& stepper,
                          int64_t at, bool is_first, int64_t n, Piece* pieces) {
  const auto index = static_cast<uint64_t>(tensor.origin + at);
  const auto lower = static_cast<uint32_t>(index);
  NoiseKey key = pieces[kParam].noise;
  if (is_first || lower == 0) key = {table.keys[tensor.rule], tensor.position, index};
  for (int k = 0; k < stepper.operands; ++k) {
    pieces[k].index = lower;
    pieces[k].noise = key;
    pieces[k].factor = noise_factor(k);
  }
  return std::min(n, (int64_t{1} << 32) - lower);
}

// Elements [begin, end) of one tensor through tiles: low precision, a gradient scale, operands in
// several dtypes. All operands pass through the same load instruction, so the hardware sees no
// stream, and each tile is asked for in advance.
template <typename Compute>
__attribute__((noinline)) void tiled(const Table& table, const TensorEntry& tensor,
                                     const Stepper& stepper, const void* rule, int64_t begin,
                                     int64_t end) {
  alignas(64) Compute values[kMaxOperands][kTile];
  void* tiles[kMaxOperands];
  Piece pieces[kMaxOperands];
  for (int k = 0; k < kMaxOperands; ++k) tiles[k] = values[k];
  find_pieces(table, tensor, stepper, begin, pieces);
  bool in_place[kMaxOperands];  // what is stored as it is computed with
  for (int k = 0; k < stepper.operands; ++k) {
    in_place[k] = stepper.codecs[k] == &kCodecs<Compute>[int(kPlainFormat<Compute>)];
  }
  const bool split = is_split(table);
  const auto scale = Compute(table.grad_scale);
  const double factor = grad_factor<double>(table, tensor);
  for (int64_t at = begin; at < end;) {
    int64_t n = std::min<int64_t>(kTile, end - at);
    if (table.keys != nullptr) n = find_noise(table, tensor, stepper, at, at == begin, n, pieces);
    for (int k = 0; k < stepper.operands; ++k) {
      const int64_t bytes = kTile * stepper.item(k);
      if (at + kTilesAhead * kTile >= end) continue;
      for (int64_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(pieces[k].at + kTilesAhead * bytes + i, 1);
      }
    }
    for (int k = 0; k < stepper.operands; ++k) {
      if (in_place[k]) {
        tiles[k] = pieces[k].at;
      } else {
        stepper.codecs[k]->load(tiles[k], pieces[k], n);
      }
    }
    if (table.scaled) {
      using Element = typename Plain<Compute>::Type;  // not auto: it may lie at any address
      Element* grads = static_cast<Element*>(tiles[kGrad]);
      for (int64_t i = 0; i < n; ++i) grads[i] /= scale;
      if (!in_place[kGrad]) stepper.codecs[kGrad]->store(tiles[kGrad], pieces[kGrad], n);
    }
    stepper.apply(rule, tiles, 0, n, factor);
    for (int k = 0; k < stepper.operands; ++k) {
      if (k != kGrad && !in_place[k]) stepper.codecs[k]->store(tiles[k], pieces[k], n);
      pieces[k].at += n * stepper.item(k);
    }
    if (split) pieces[kParam].remainder += n * kRemainderBytes;
    at += n;
  }
}

#include "cpu/blocks.inl"

// Elements [begin, end) of a tensor whose operands share one dense layout and one dtype.
template <typename Rule, Dtype kDtype>
void dense(const Table& table, const TensorEntry& tensor, const Stepper& stepper, const void* rule,
           int64_t begin, int64_t end) {
  using Compute = typename Storage<kDtype>::Compute;
  if constexpr (kHalf<kDtype>) {
    if (!table.scaled) {
      const Rule& of = *static_cast<const Rule*>(rule);
      Piece pieces[kMaxOperands];
      find_pieces(table, tensor, stepper, begin, pieces);
      begin =
          blocks<Rule, AllOf<kDtype>>(of, grad_factor<float>(table, tensor), pieces, begin, end);
    }
  } else if (!table.scaled) {
    return apply<Rule, Compute>(rule, tensor.operands, begin, end - begin,
                                grad_factor<double>(table, tensor));
  }
  tiled<Compute>(table, tensor, stepper, rule, begin, end);
}

#include "cpu/strided.inl"

template <typename Rule, Dtype kDtype>
constexpr Stepper make_stepper() {
  using Compute = typename Storage<kDtype>::Compute;
  Stepper made{kFirstState + Rule::kStates, sizeof(Rule),         {},
               dense<Rule, kDtype>,         apply<Rule, Compute>, nullptr};
  for (const Codec*& codec : made.codecs) codec = &kCodecs<Compute>[static_cast<int>(kDtype)];
  if constexpr (Rule::kStates == 0 && !kHalf<kDtype>) made.apart = step_apart<Rule, kDtype>;
  return made;
}

// The stepper of operands in several formats.
template <typename Rule, typename Compute>
Stepper with_formats(Stepper stepper, const Format* formats) {
  for (int k = 0; k < stepper.operands; ++k) {
    stepper.codecs[k] = &kCodecs<Compute>[static_cast<int>(formats[k])];
  }
  stepper.dense = tiled<Compute>;
  stepper.apart = nullptr;
#if defined(FUSEDOPT_AVX512)
  if constexpr (sizeof(Compute) == sizeof(float)) {
    using enum Format;
    take_formatted<Rule, kNoisyBFloat16, kNoisyBFloat16>(formats, stepper) ||
        (Rule::kStates != 0 &&
         take_formatted<Rule, kSplitFloat32, kNoisyBFloat16>(formats, stepper));
  }
#elif defined(FUSEDOPT_GROUPS)
  if constexpr (sizeof(Compute) == sizeof(float)) {
    using enum Format;
    take_formatted<Rule, kNoisyBFloat16, kNoisyBFloat16>(formats, stepper) ||
        take_formatted<Rule, kSplitFloat32, kBFloat16>(formats, stepper) ||
        take_formatted<Rule, kSplitFloat32, kNoisyBFloat16>(formats, stepper) ||
        (Rule::kStates != 0 && (take_formatted<Rule, kFloat32, kBFloat16>(formats, stepper) ||
                                take_formatted<Rule, kFloat32, kNoisyBFloat16>(formats, stepper)));
  }
#endif
  return stepper;
}

// Elements [begin, end) of the work list: the loop over tensors.
__attribute__((noinline)) inline void walk(const Table& table, const Stepper& stepper,
                                           int64_t begin, int64_t end) {
  for (int64_t i = find_tensor(table, begin); i < table.count; ++i) {
    const TensorEntry& tensor = table.tensors[i];
    if (tensor.start >= end) break;
    if (i + kSweepAhead < table.count) prefetch(table.tensors[i + kSweepAhead], stepper);
    const int64_t from = std::max<int64_t>(begin - tensor.start, 0);
    const int64_t to = std::min(end - tensor.start, tensor.numel);
    const void* rule = static_cast<const char*>(table.rules) + tensor.rule * stepper.rule_bytes;
    if (tensor.layout < 0) {
      stepper.dense(table, tensor, stepper, rule, from, to);
    } else {
      strided(table, tensor, stepper, rule, from, to);
    }
  }
}

template <typename Rule, Dtype kDtype>
void sweep(const Table& table, int64_t begin, int64_t end) {
  static constexpr Stepper kStepper = make_stepper<Rule, kDtype>();
  if (table.formats == nullptr) return walk(table, kStepper, begin, end);
  using Compute = typename Storage<kDtype>::Compute;
  const Stepper stepper = with_formats<Rule, Compute>(kStepper, table.formats);
#if defined(FUSEDOPT_AVX512)
  if (stepper.dense == tiled<Compute>) return avx2::sweep<Rule, kDtype>(table, begin, end);
#endif
  walk(table, stepper, begin, end);
}
