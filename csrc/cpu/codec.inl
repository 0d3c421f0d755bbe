// How one operand lies in memory: a part of the CPU sweep, included once per instruction set.
// Codecs are chosen at run time, so that what is rare doesn't multiply the sweeps.

// Loads elements that lie side by side into a tile of floats (or doubles), and stores them from it.
struct Codec {
  int64_t item;  // bytes of an element
  void (*load)(void* tile, const char* source, int64_t n);
  void (*store)(const void* tile, char* target, int64_t n);
};

template <Dtype kDtype, typename Compute>
void load_tile(void* tile, const char* source, int64_t n) {
  using S = Storage<kDtype>;
  // Not auto: the attribute that allows any address would be lost.
  const typename S::Type* elements = reinterpret_cast<const typename S::Type*>(source);
  auto* values = static_cast<Compute*>(tile);
  int64_t done = 0;
#if defined(FUSEDOPT_F16C)
  if constexpr (kDtype == Dtype::kFloat16 && sizeof(Compute) == sizeof(float)) {
    for (; done + 8 <= n; done += 8) load_eight(values + done, source + 2 * done);
  }
#endif
  FUSEDOPT_VECTORIZE
  for (int64_t i = done; i < n; ++i) values[i] = static_cast<Compute>(S::load(elements[i]));
}

template <Dtype kDtype, typename Compute>
void store_tile(const void* tile, char* target, int64_t n) {
  using S = Storage<kDtype>;
  typename S::Type* elements = reinterpret_cast<typename S::Type*>(target);
  const auto* values = static_cast<const Compute*>(tile);
  int64_t done = 0;
#if defined(FUSEDOPT_F16C)
  if constexpr (kDtype == Dtype::kFloat16 && sizeof(Compute) == sizeof(float)) {
    for (; done + 8 <= n; done += 8) store_eight(values + done, target + 2 * done);
  }
#endif
  FUSEDOPT_VECTORIZE
  for (int64_t i = done; i < n; ++i) {
    elements[i] = S::store(static_cast<typename S::Compute>(values[i]));
  }
}

template <Dtype kDtype, typename Compute>
constexpr Codec make_codec() {
  return {sizeof(typename Storage<kDtype>::Type), load_tile<kDtype, Compute>,
          store_tile<kDtype, Compute>};
}

// By dtype.
template <typename Compute>
inline constexpr Codec kCodecs[kDtypes] = {
    make_codec<Dtype::kFloat32, Compute>(), make_codec<Dtype::kFloat64, Compute>(),
    make_codec<Dtype::kBFloat16, Compute>(), make_codec<Dtype::kFloat16, Compute>()};

struct Steps;

// How a rule steps a parameter of one dtype, whose gradient and states may have others.
struct Stepper {
  int operands;
  size_t rule_bytes;
  const Codec* codecs[kMaxOperands];
  // Elements [begin, end) of a tensor that lie side by side.
  void (*dense)(const Table& table, const TensorEntry& tensor, const Stepper& stepper,
                const void* rule, int64_t begin, int64_t end);
  // The rule over tiles of n floats (or doubles).
  void (*apply)(const void* rule, void* const* tiles, int64_t n, bool maximize);
  // Rows of n elements however far apart. Only of a rule without states that needs no conversion:
  // its arithmetic takes less than copying to tiles and back.
  void (*apart)(const TensorEntry& part, const void* rule, int64_t n, int64_t rows,
                const Steps& steps);

  int64_t item(int k) const { return codecs[k]->item; }
};
