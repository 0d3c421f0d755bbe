// How one operand lies in memory: a part of the CPU sweep, included once per instruction set.
// Codecs are chosen at run time, so that what is rare doesn't multiply the sweeps.

// Loads a piece of n elements into a tile of floats (or doubles), and stores them from it.
struct Codec {
  int64_t item;  // bytes of an element
  void (*load)(void* tile, const Piece& piece, int64_t n);
  void (*store)(const void* tile, const Piece& piece, int64_t n);
};

template <Dtype kDtype, typename Compute>
void load_tile(void* tile, const Piece& piece, int64_t n) {
  using S = Storage<kDtype>;
  // Not auto: the attribute that allows any address would be lost.
  const typename S::Type* elements = reinterpret_cast<const typename S::Type*>(piece.at);
  auto* values = static_cast<Compute*>(tile);
  int64_t done = 0;
#if defined(FUSEDOPT_F16C)
  if constexpr (kDtype == Dtype::kFloat16 && sizeof(Compute) == sizeof(float)) {
    for (; done + 8 <= n; done += 8) load_eight(values + done, piece.at + 2 * done);
  }
#endif
  FUSEDOPT_VECTORIZE
  for (int64_t i = done; i < n; ++i) values[i] = static_cast<Compute>(S::load(elements[i]));
}

template <Dtype kDtype, typename Compute>
void store_tile(const void* tile, const Piece& piece, int64_t n) {
  using S = Storage<kDtype>;
  typename S::Type* elements = reinterpret_cast<typename S::Type*>(piece.at);
  const auto* values = static_cast<const Compute*>(tile);
  int64_t done = 0;
#if defined(FUSEDOPT_F16C)
  if constexpr (kDtype == Dtype::kFloat16 && sizeof(Compute) == sizeof(float)) {
    for (; done + 8 <= n; done += 8) store_eight(values + done, piece.at + 2 * done);
  }
#endif
#if defined(FUSEDOPT_GROUPS)
  if constexpr (kDtype == Dtype::kBFloat16 && sizeof(Compute) == sizeof(float)) {
    for (; done + kGroup <= n; done += kGroup) {
      store_sixteen(piece.at + 2 * done, round_lanes(lanes_of_row(values + done)));
    }
  }
#endif
  FUSEDOPT_VECTORIZE
  for (int64_t i = done; i < n; ++i) {
    elements[i] = S::store(static_cast<typename S::Compute>(values[i]));
  }
}

#if defined(FUSEDOPT_AVX512)
using avx2::store_noisy;
#else
template <typename Compute>
void store_noisy(const void* tile, const Piece& piece, int64_t n) {
  using S = Storage<Dtype::kBFloat16>;
  S::Type* elements = reinterpret_cast<S::Type*>(piece.at);
  const auto* values = static_cast<const Compute*>(tile);
  const NoiseKey key = piece.noise;
  const uint32_t first = piece.index;
  const auto store_one = [&](int64_t i) {
    const uint32_t noise = noise_at(key, piece.factor, first + static_cast<uint32_t>(i));
    elements[i] = round_with(noise, static_cast<float>(values[i]));
  };
  int64_t done = 0;
#if defined(FUSEDOPT_GROUPS)
  if constexpr (sizeof(Compute) == sizeof(float)) {
    if (first % 2 != 0) store_one(done++);
    for (; done + kGroup <= n; done += kGroup) {
      const __m256i pairs = noise_of_pairs(key, first + static_cast<uint32_t>(done));
      const __m256i noise = noise_of_group(pairs, piece.factor);
      store_sixteen(piece.at + 2 * done, round_lanes_with(noise, lanes_of_row(values + done)));
    }
  }
#endif
  for (int64_t i = done; i < n; ++i) store_one(i);
}
#endif

// Remainders lie at any address, too.
typedef int16_t Remainder __attribute__((aligned(1), may_alias));

template <typename Compute>
void load_split(void* tile, const Piece& piece, int64_t n) {
  using S = Storage<Dtype::kBFloat16>;
  const S::Type* upper = reinterpret_cast<const S::Type*>(piece.at);
  const Remainder* rest = reinterpret_cast<const Remainder*>(piece.remainder);
  auto* values = static_cast<Compute*>(tile);
  FUSEDOPT_VECTORIZE
  for (int64_t i = 0; i < n; ++i) values[i] = join(upper[i], rest[i]);
}

template <typename Compute>
void store_split(const void* tile, const Piece& piece, int64_t n) {
  using S = Storage<Dtype::kBFloat16>;
  S::Type* upper = reinterpret_cast<S::Type*>(piece.at);
  Remainder* rest = reinterpret_cast<Remainder*>(piece.remainder);
  const auto* values = static_cast<const Compute*>(tile);
  FUSEDOPT_VECTORIZE
  for (int64_t i = 0; i < n; ++i) {
    const Halves halves = split(static_cast<float>(values[i]));
    upper[i] = halves.upper;
    rest[i] = halves.remainder;
  }
}

template <Dtype kDtype, typename Compute>
constexpr Codec make_codec() {
  return {item_bytes(kDtype), load_tile<kDtype, Compute>, store_tile<kDtype, Compute>};
}

// By format.
template <typename Compute>
inline constexpr Codec kCodecs[kFormats] = {
    make_codec<Dtype::kFloat32, Compute>(),
    make_codec<Dtype::kFloat64, Compute>(),
    make_codec<Dtype::kBFloat16, Compute>(),
    make_codec<Dtype::kFloat16, Compute>(),
    {2, load_tile<Dtype::kBFloat16, Compute>, store_noisy<Compute>},
    {2, load_split<Compute>, store_split<Compute>}};

struct Steps;

// How a rule steps a parameter of one dtype, whose gradient and states may have others.
struct Stepper {
  int operands;  // without a remainder
  size_t rule_bytes;
  const Codec* codecs[kMaxOperands];
  // Elements [begin, end) of a tensor that lie side by side.
  void (*dense)(const Table& table, const TensorEntry& tensor, const Stepper& stepper,
                const void* rule, int64_t begin, int64_t end);
  // The rule over n elements of tiles of floats (or doubles).
  void (*apply)(const void* rule, void* const* tiles, int64_t begin, int64_t n, double factor);
  // Rows of n elements however far apart. Only of a rule without states that needs no conversion:
  // its arithmetic takes less than copying to tiles and back.
  void (*apart)(const Table& table, const TensorEntry& part, const void* rule, int64_t n,
                int64_t rows, const Steps& steps);

  int64_t item(int k) const { return codecs[k]->item; }
};
