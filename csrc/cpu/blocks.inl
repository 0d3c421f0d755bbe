// 16-bit operands in registers: a part of the CPU sweep, included once per instruction set. Formats
// are known when this is compiled, for the combinations that are usual.

// How blocks load and store operands of one dtype.
template <Dtype kDtype>
struct AllOf {
  static constexpr bool kNoisy = false;
  static constexpr bool kSplit = false;
#if defined(FUSEDOPT_AVX512)
  static constexpr bool kTwoPerTurn = false;
#else
  static constexpr bool kTwoPerTurn = true;
#endif
  static constexpr int item(int) { return 2; }
#if defined(FUSEDOPT_BLOCKS)
  static void load(int, float* values, const Piece& piece, int i) {
    load_group<kDtype>(values, piece.at + 2 * i);
  }
  static int noise(const Piece&, int) { return 0; }
  static void store(int, const float* values, const Piece& piece, int i, int) {
    store_group<kDtype>(values, piece.at + 2 * i);
  }
#endif
};

// Parameters and states in these formats, gradients in the parameters' dtype.
template <Format kParamFormat, Format kStateFormat>
struct Formatted {
  // Where it is true, values are in memory's order.
  static constexpr bool kWide = kParamFormat == Format::kFloat32;
  static constexpr bool kSplit = kParamFormat == Format::kSplitFloat32;
  static constexpr bool kNoisy = kStateFormat == Format::kNoisyBFloat16;
  static constexpr bool kTwoPerTurn = true;
  static constexpr Format of(int k) {
    constexpr Format kGradFormat = kWide ? Format::kFloat32 : Format::kBFloat16;
    return k == kParam ? kParamFormat : k == kGrad ? kGradFormat : kStateFormat;
  }
  static constexpr int item(int k) { return item_bytes(of(k)); }
#if defined(FUSEDOPT_AVX512)
  static_assert(kNoisy && !kWide, "others take AVX2's kernels");
  static void load(int k, float* values, const Piece& piece, int i) {
    const char* at = piece.at + 2 * i;
    if (kSplit && k == kParam) return join_group(values, at, piece.remainder + 2 * i);
    load_group<Dtype::kBFloat16>(values, at);
  }
  static __m512i noise(const Piece& piece, int i) {
    return noise_of_pairs(piece.noise, piece.index + static_cast<uint32_t>(i));
  }
  static void store(int k, const float* values, const Piece& piece, int i, __m512i noise) {
    char* at = piece.at + 2 * i;
    if (kSplit && k == kParam) return split_group(values, at, piece.remainder + 2 * i);
    const __m512i mine = noise_of_group(noise, noise_factor(k));
    _mm512_storeu_si512(at, round_lanes_with(mine, lanes_of_group(values)));
  }
#elif defined(FUSEDOPT_GROUPS)
  static void load(int k, float* values, const Piece& piece, int i) {
    const char* at = piece.at + item(k) * i;
    if (of(k) == Format::kSplitFloat32) return join_group(values, at, piece.remainder + 2 * i);
    if (of(k) == Format::kFloat32) return copy_group(values, at);
    kWide ? load_row(values, at) : load_group<Dtype::kBFloat16>(values, at);
  }
  // The noise of element i and those that follow, for all operands.
  static __m256i noise(const Piece& piece, int i) {
    return kNoisy ? noise_of_pairs(piece.noise, piece.index + static_cast<uint32_t>(i))
                  : _mm256_setzero_si256();
  }
  static void store(int k, const float* values, const Piece& piece, int i, __m256i noise) {
    char* at = piece.at + item(k) * i;
    if (of(k) == Format::kSplitFloat32) return split_group(values, at, piece.remainder + 2 * i);
    if (of(k) == Format::kFloat32) return copy_group(at, values);
    const Lanes lanes = kWide ? lanes_of_row(values) : lanes_of_group(values);
    if (of(k) == Format::kBFloat16) return store_sixteen(at, round_lanes(lanes));
    store_sixteen(at, round_lanes_with(noise_of_group(noise, noise_factor(k)), lanes));
  }
#endif
};

#if defined(FUSEDOPT_BLOCKS)
template <typename Rule>
inline constexpr int kBlock = kBlockGroups<Rule::kStates> * kGroup;

// One block: the first elements of the pieces, which then begin behind it.
template <typename Rule, typename Stored>
inline __attribute__((always_inline)) void step_block(const Rule& rule, float factor, Piece* at) {
  constexpr int kOperands = kFirstState + Rule::kStates;
  constexpr int kElements = kBlock<Rule>;
  alignas(64) float values[kOperands][kElements];
  if (Stored::kSplit) __builtin_prefetch(at[kParam].remainder + kBlockBytesAhead, 1);
  for (int k = 0; k < kOperands; ++k) {
    for (int i = 0; i < Stored::item(k) * kElements; i += 64) {
      __builtin_prefetch(at[k].at + kBlockBytesAhead + i, 1);
    }
    for (int i = 0; i < kElements; i += kGroup) Stored::load(k, values[k] + i, at[k], i);
  }
  float* states[Rule::kStates + 1];
  for (int k = 0; k < Rule::kStates; ++k) states[k] = values[kFirstState + k];
  FUSEDOPT_VECTORIZE
  for (int i = 0; i < kElements; ++i) {
    step_element<Plain<float>>(rule, values[kParam], factor * values[kGrad][i], states, i);
  }
  for (int i = 0; i < kElements; i += kGroup) {
    const auto noise = Stored::noise(at[kParam], i);
    for (int k = 0; k < kOperands; ++k) {
      if (k != kGrad) Stored::store(k, values[k] + i, at[k], i, noise);
    }
  }
  for (int k = 0; k < kOperands; ++k) at[k].at += Stored::item(k) * kElements;
  at[kParam].index += kElements;
  if (Stored::kSplit) at[kParam].remainder += 2 * kElements;
}
#endif

// 16-bit floats in one dense layout, by blocks so short that the conversions of one overlap the
// divisions of another. Returns where the rest begins. See tuning.h for the gain.
template <typename Rule, typename Stored>
__attribute__((noinline)) int64_t blocks([[maybe_unused]] const Rule& of,
                                         [[maybe_unused]] float factor,
                                         [[maybe_unused]] const Piece* pieces, int64_t begin,
                                         [[maybe_unused]] int64_t end) {
#if defined(FUSEDOPT_BLOCKS)
  const Rule rule = of;
  Piece at[kFirstState + Rule::kStates];
  for (int k = 0; k < kFirstState + Rule::kStates; ++k) at[k] = pieces[k];
  if constexpr (Rule::kStates <= 2 && Stored::kTwoPerTurn) {
#pragma GCC unroll 2
    for (; begin + kBlock<Rule> <= end; begin += kBlock<Rule>) {
      step_block<Rule, Stored>(rule, factor, at);
    }
  } else {
    for (; begin + kBlock<Rule> <= end; begin += kBlock<Rule>) {
      step_block<Rule, Stored>(rule, factor, at);
    }
  }
#endif
  return begin;
}

#if defined(FUSEDOPT_BLOCKS)
// Elements [begin, end) of a tensor with noise or halves. Noise comes in pairs, so blocks begin
// with an even index; and its key is another where an index's upper half changes.
template <typename Rule, typename Stored>
void dense_formatted(const Table& table, const TensorEntry& tensor, const Stepper& stepper,
                     const void* rule, int64_t begin, int64_t end) {
  const Rule& of = *static_cast<const Rule*>(rule);
  while (begin < end) {
    const auto index = static_cast<uint64_t>(tensor.origin + begin);
    int64_t stop = std::min(end, begin + (int64_t{1} << 32) - static_cast<uint32_t>(index));
    if (index % 2 != 0) {
      stop = begin + 1;
    } else if (!table.scaled) {
      Piece pieces[kMaxOperands];
      find_pieces(table, tensor, stepper, begin, pieces);
      if (Stored::kNoisy) find_noise(table, tensor, stepper, begin, true, 0, pieces);
      begin = blocks<Rule, Stored>(of, grad_factor<float>(table, tensor), pieces, begin, stop);
    }
    tiled<float>(table, tensor, stepper, rule, begin, stop);
    begin = stop;
  }
}

template <typename Rule, Format kParamFormat, Format kStateFormat>
bool take_formatted(const Format* formats, Stepper& stepper) {
  using Stored = Formatted<kParamFormat, kStateFormat>;
  bool same = true;
  for (int k = 0; k < stepper.operands; ++k) same = same && formats[k] == Stored::of(k);
  if (same) stepper.dense = dense_formatted<Rule, Stored>;
  return same;
}
#endif
