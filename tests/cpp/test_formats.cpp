// Operands in formats of their own: numbers in two halves, numbers that noise rounds, several
// dtypes at once. On each instruction set, cut and laid out in any way, and by the CUDA kernels'
// bodies on the host, the same bits.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cuda/mixed.cuh"
#include "cuda/pack.h"
#include "cuda/prepare.cuh"
#include "engine/format.h"
#include "engine/layout.h"
#include "rules/adam.h"

namespace {

using namespace fusedopt;
using Bfloat = Storage<Dtype::kBFloat16>;
using AdamRule = Adam<float, false>;

bool is_nan(float x) { return (bits_of(x) & 0x7fffffffu) > 0x7f800000u; }

void test_halves_are_the_number() {
  for (uint64_t i = 0; i < (uint64_t{1} << 32); i += 251) {
    const auto bits = static_cast<uint32_t>(i);
    const float x = float_of(bits);
    const Halves halves = split(x);
    const float joined = join(halves.upper, halves.remainder);
    if (is_nan(x)) {
      CHECK(is_nan(joined) && is_nan(Bfloat::load(halves.upper)));
      continue;
    }
    CHECK(bits_of(joined) == bits);
    // To nearest, half away from zero.
    CHECK(halves.upper == static_cast<uint16_t>((bits + 0x8000u) >> 16));
  }
}

// Whatever somebody writes over a bfloat16 is itself, up to the remainder.
void test_any_halves_are_a_number() {
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const int remainder : {-0x8000, -3, -1, 0, 1, 77, 0x7fff}) {
      const float alone = Bfloat::load(static_cast<uint16_t>(upper));
      const float joined = join(static_cast<uint16_t>(upper), static_cast<int16_t>(remainder));
      CHECK(is_nan(joined) == is_nan(alone));
      if (remainder == 0 || upper % 0x8000 == 0) {
        CHECK(is_nan(alone) || remainder > 0 || bits_of(joined) == bits_of(alone));
      }
      if (std::isfinite(alone)) CHECK(std::abs(joined - alone) <= std::abs(alone) / 128 + 1e-38f);
    }
  }
}

// Over all noises the mean is the number, and neighbours are the only results.
void test_rounding_is_unbiased() {
  for (const float x : {1.0f, 1.001f, -3.14159265f, 1e-3f, 6.1e-5f, -7.7e30f, 1e-40f, -3e-39f, 0.0f,
                        3.3895e38f, 1.00390625f}) {
    double sum = 0;
    for (uint32_t noise = 0; noise < 0x10000; ++noise) {
      const double stored = Bfloat::load(round_with(noise, x));
      CHECK(std::abs(stored - x) < std::abs(x) / 128 + 1e-40);
      sum += stored;
    }
    CHECK(sum / 0x10000 == x);
  }
  for (const uint32_t bits : {0x7f800000u, 0xff800000u, 0x7fc00001u, 0x7f7f0001u, 0x7f7fffffu,
                              0x7f7f8000u, 0x7f7f7fffu, 0xff7fffffu}) {
    for (const uint32_t noise : {0u, 1u, 0x8000u, 0xffffu}) {
      CHECK(round_with(noise, float_of(bits)) == Bfloat::store(float_of(bits)));
    }
  }
}

struct Means {
  int64_t n = 0;
  double x = 0, y = 0, xx = 0, yy = 0, xy = 0;
  void add(double a, double b) { ++n, x += a, y += b, xx += a * a, yy += b * b, xy += a * b; }
  double correlation() const {
    const double m = static_cast<double>(n);
    return (xy / m - x / m * (y / m)) /
           std::sqrt((xx / m - x / m * (x / m)) * (yy / m - y / m * (y / m)));
  }
};

// Pairs of noises that must know nothing of each other, 2^20 of each kind. A correlation of 5 /
// 2^10 has a probability of 6e-7 if they don't.
void test_noise_is_uncorrelated() {
  constexpr int64_t kCount = int64_t{1} << 20;
  const auto noise = [](uint64_t seed, double step, uint32_t position, int role, uint64_t index) {
    const NoiseKey key(step_key(seed, step), position, index);
    return noise_at(key, noise_factor(role), static_cast<uint32_t>(index)) - 32767.5;
  };
  Means next, row, power, operands, steps, positions, seeds, halves;
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < kCount; ++i) {
    const double x = noise(0, 1, 0, 0, i);
    sum += x;
    squares += x * x;
    next.add(x, noise(0, 1, 0, 0, i + 1));
    row.add(x, noise(0, 1, 0, 0, i + 1000));
    power.add(x, noise(0, 1, 0, 0, i + 65536));
    operands.add(x, noise(0, 1, 0, 2, i));
    steps.add(x, noise(0, 2, 0, 0, i));
    positions.add(x, noise(0, 1, 1, 0, i));
    seeds.add(x, noise(1, 1, 0, 0, i));
    halves.add(x, noise(0, 1, 0, 0, i + (int64_t{1} << 32)));
  }
  const double bound = 5 / std::sqrt(static_cast<double>(kCount));
  CHECK(std::abs(sum / kCount) < bound * 65536 / std::sqrt(12.0));
  CHECK(std::abs(squares / kCount / (65536.0 * 65536 / 12) - 1) < bound);
  for (const Means& means : {next, row, power, operands, steps, positions, seeds, halves}) {
    CHECK(std::abs(means.correlation()) < bound);
  }
  // One element in one step after the other, and one position after the other.
  Means in_time, in_place;
  for (int i = 0; i < kCount; ++i) {
    in_time.add(noise(7, i, 3, 0, 12345), noise(7, i + 1, 3, 0, 12345));
    in_place.add(noise(7, 9, i, 3, 5), noise(7, 9, i + 1, 3, 5));
  }
  CHECK(std::abs(in_time.correlation()) < bound);
  CHECK(std::abs(in_place.correlation()) < bound);
}

// Two tensors of Adam's five operands (the last is the remainder), each element 8 bytes of memory.
constexpr int kOperands = 5;
constexpr int64_t kNumel = 1500;

struct Formats {
  Format all[kMaxOperands];
  Dtype dtype;  // what is computed in
};
const std::vector<Formats> kFormats = {
    {{Format::kNoisyBFloat16, Format::kBFloat16, Format::kNoisyBFloat16, Format::kNoisyBFloat16},
     Dtype::kBFloat16},
    {{Format::kSplitFloat32, Format::kBFloat16, Format::kFloat32, Format::kFloat32},
     Dtype::kBFloat16},
    {{Format::kSplitFloat32, Format::kFloat32, Format::kNoisyBFloat16, Format::kNoisyBFloat16},
     Dtype::kBFloat16},
    {{Format::kFloat32, Format::kFloat32, Format::kNoisyBFloat16, Format::kBFloat16},
     Dtype::kFloat32},
    {{Format::kFloat16, Format::kFloat32, Format::kFloat32, Format::kFloat16}, Dtype::kFloat16},
    {{Format::kFloat64, Format::kFloat16, Format::kFloat32, Format::kNoisyBFloat16},
     Dtype::kFloat64},
};

enum class Lie { kDense, kRows, kTransposedGrad };

struct Memory {
  std::vector<std::vector<char>> bytes{2 * kOperands, std::vector<char>(kNumel * 2 * 8)};
  std::vector<TensorEntry> tensors;
  LayoutBuffer buffer;
  Layout layout;

  Memory(const Formats& formats, Lie lie, int64_t origin) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const int64_t between = lie == Lie::kRows ? 2 : 1;  // elements from one to the next
    const int64_t sizes[] = {30, kNumel / 30};
    const int64_t along[] = {kNumel / 30 * between, between};
    const int64_t across[] = {between, 30 * between};
    const bool transposed = lie == Lie::kTransposedGrad;
    buffer = make_layout(2, sizes, {along, transposed ? across : along, along, along, along}, true);
    layout = buffer.view();
    for (int t = 0; t < 2; ++t) {
      TensorEntry tensor{};
      for (int k = 0; k < kOperands; ++k) {
        const Format format = k == kOperands - 1 ? Format::kBFloat16 : formats.all[k];
        char* at = bytes[t * kOperands + k].data();
        tensor.operands[k] = at;
        for (int64_t i = 0; i < kNumel; ++i) {
          const int64_t place =
              k == kGrad && transposed ? i % sizes[1] * 30 + i / sizes[1] : i * between;
          const float value = k < 2 ? normal(random) : std::abs(normal(random)) / 100;
          store(at, format, place, value, k == kOperands - 1);
        }
      }
      tensor.start = t * kNumel;
      tensor.numel = kNumel;
      tensor.layout = lie == Lie::kDense ? -1 : 0;
      tensor.maximize = t == 1;
      tensor.position = static_cast<uint32_t>(t);
      tensor.origin = origin;
      tensors.push_back(tensor);
    }
  }

  static void store(char* base, Format format, int64_t at, float value, bool remainder) {
    char* to = base + at * item_bytes(format);
    const double wide = value;
    const uint16_t bfloat = remainder ? 0 : Bfloat::store(value);
    const uint16_t half = Storage<Dtype::kFloat16>::store(value);
    if (format == Format::kFloat32) {
      std::memcpy(to, &value, 4);
    } else if (format == Format::kFloat64) {
      std::memcpy(to, &wide, 8);
    } else {
      std::memcpy(to, format == Format::kFloat16 ? &half : &bfloat, 2);
    }
  }

  // The elements of one operand of tensor t, in order.
  std::string operand(int t, int k, const Formats& formats, Lie lie) const {
    const int64_t item = k == kOperands - 1 ? 2 : item_bytes(formats.all[k]);
    std::string all;
    for (int64_t i = 0; i < kNumel; ++i) {
      const int64_t place = k == kGrad && lie == Lie::kTransposedGrad
                                ? i % (kNumel / 30) * 30 + i / (kNumel / 30)
                                : i * (lie == Lie::kRows ? 2 : 1);
      all.append(bytes[t * kOperands + k].data() + place * item, item);
    }
    return all;
  }
  std::string all(const Formats& formats, Lie lie) const {
    std::string text;
    for (int t = 0; t < 2; ++t) {
      for (int k = 0; k < kOperands; ++k) text += operand(t, k, formats, lie);
    }
    return text;
  }
};

struct How {
  int isa = 0;
  Lie lie = Lie::kDense;
  int64_t cut = 1 << 30;
  bool cuda = false;
  bool from_device = false;
  double scale = 0;
  int64_t origin = (int64_t{1} << 32) - 700;  // an upper half ends within
  uint64_t seed = 3;
};

const std::vector<double> kOptions = {1e-2, 0.9, 0.999, 1e-8, 0.01, 1};

void launch(const cpu::Kernel& cpu, Dtype dtype, const Table& table, bool from_device,
            const How& how) {
  const cuda::Kernel kernel{
      "test", cpu.states, 0, cpu.options, {cpu.rule_bytes[0], cpu.rule_bytes[1]}, {}, {}, {}};
  std::vector<cuda::Number> options;
  for (const double option : kOptions) options.push_back({option, nullptr, {}});
  double step = 8;
  cuda::RuleSource source{0, {0, &step, Dtype::kFloat64}, {}, how.seed, {}};
  uint64_t key = 0;
  std::vector<double> made(64);
  const cuda::DeviceRules rules{options.data(), &source, 1, made.data(), &key};
  const cuda::Scalars scalars{nullptr, nullptr, from_device ? &rules : nullptr};
  const auto prepared = std::make_unique<cuda::PrepareArguments>();
  cuda::PreparePacker prepare(kernel, dtype, scalars);
  while (prepare.next(*prepared) != 0) {
    cuda::prepare_rule<AdamRule>(*prepared, 0);
  }
  const auto args = std::make_unique<cuda::SweepArguments>();
  cuda::SweepPacker sweep(kernel, dtype, table, scalars, 1);
  while (const uint32_t blocks = sweep.next(*args)) {
    for (uint32_t i = 0; i < blocks * kBlockThreads; ++i) {
      cuda::mixed_chunk<AdamRule>(*args, i / kBlockThreads, i % kBlockThreads);
    }
  }
}

std::string run(const Formats& formats, const How& how) {
  const cpu::Kernel& kernel = cpu::kAdam[0];
  Memory memory(formats, how.lie, how.origin);
  std::vector<double> rule(64);
  kernel.prepare[cpu::Kernel::compute(formats.dtype)](kOptions.data(), Counts{9}, kLargest[1],
                                                      rule.data());
  const uint64_t key = step_key(how.seed, 9);
  Table table{memory.tensors.data(), 2, rule.data(), &memory.layout, how.scale != 0, how.scale};
  table.formats = formats.all;
  table.keys = &key;
  table.clip = 0.3;
  if (how.cuda) {
    if (how.from_device) table.keys = nullptr;
    launch(kernel, formats.dtype, table, how.from_device, how);
  }
  for (int64_t begin = 0; !how.cuda && begin < 2 * kNumel; begin += how.cut) {
    const int64_t end = std::min(begin + how.cut, 2 * kNumel);
    kernel.sweep[how.isa][static_cast<int>(formats.dtype)](table, begin, end);
  }
  return memory.all(formats, how.lie);
}

void test_the_same_bits() {
  for (const Formats& formats : kFormats) {
    for (const double scale : {0.0, 4.0}) {
      How how;
      how.scale = scale;
      const std::string expected = run(formats, how);
      for (const Lie lie : {Lie::kDense, Lie::kRows, Lie::kTransposedGrad}) {
        how = {};
        how.scale = scale;
        how.lie = lie;
        for (int isa = 0; isa < cpu::kIsas; ++isa) {
          if (!cpu::isa_detected(isa)) continue;
          how.isa = isa;
          for (const int64_t cut : {int64_t{1} << 30, int64_t{37}, int64_t{1000}}) {
            how.cut = cut;
            CHECK(run(formats, how) == expected);
          }
        }
        if (formats.dtype == Dtype::kFloat64) continue;
        how.cuda = true;
        CHECK(run(formats, how) == expected);
        how.from_device = true;
        CHECK(run(formats, how) == expected);
      }
    }
  }
}

// The parameters are those of float32, rounded, and float32 itself together with the remainders.
void test_master_weights_are_float32() {
  const Formats& split = kFormats[1];
  Formats plain = split;
  plain.all[kParam] = Format::kFloat32;
  plain.dtype = Dtype::kFloat32;
  Memory halves(split, Lie::kDense, 0);
  Memory whole(plain, Lie::kDense, 0);
  for (int t = 0; t < 2; ++t) {
    for (int64_t i = 0; i < kNumel; ++i) {  // the same numbers
      float value;
      char* at = whole.bytes[t * kOperands].data() + 4 * i;
      std::memcpy(&value, at, 4);
      value = Bfloat::load(Bfloat::store(value));
      std::memcpy(at, &value, 4);
    }
  }
  for (int step = 1; step < 20; ++step) {
    for (const bool is_split : {true, false}) {
      const Formats& formats = is_split ? split : plain;
      Memory& memory = is_split ? halves : whole;
      std::vector<double> rule(64);
      cpu::kAdam[0].prepare[0](kOptions.data(), Counts{double(step)}, kLargest[1], rule.data());
      Table table{memory.tensors.data(), 2, rule.data(), nullptr, false, 1};
      table.formats = formats.all;
      cpu::run(cpu::kAdam[0], formats.dtype, table,
               [](int64_t, void (*task)(int64_t, void*), void* context) { task(0, context); });
    }
  }
  for (int t = 0; t < 2; ++t) {
    for (int64_t i = 0; i < kNumel; ++i) {
      float value;
      uint16_t upper;
      int16_t remainder;
      std::memcpy(&value, whole.bytes[t * kOperands].data() + 4 * i, 4);
      std::memcpy(&upper, halves.bytes[t * kOperands].data() + 2 * i, 2);
      std::memcpy(&remainder, halves.bytes[t * kOperands + 4].data() + 2 * i, 2);
      CHECK(bits_of(join(upper, remainder)) == bits_of(value));
      CHECK(upper == static_cast<uint16_t>((bits_of(value) + 0x8000u) >> 16));
    }
  }
}

void test_noise_depends_on_all_it_should() {
  const How how;
  const std::string expected = run(kFormats[0], how);
  How other = how;
  other.seed = 4;
  CHECK(run(kFormats[0], other) != expected);
  other = how;
  other.origin += 1;
  CHECK(run(kFormats[0], other) != expected);
}

}  // namespace

int main() {
  test_halves_are_the_number();
  test_any_halves_are_a_number();
  test_rounding_is_unbiased();
  test_noise_is_uncorrelated();
  test_noise_depends_on_all_it_should();
  test_the_same_bits();
  test_master_weights_are_float32();
}
