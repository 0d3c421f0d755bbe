// The sweeps: the same bits on each instruction set, for any cut, at any alignment, through any
// strides.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/passes.h"
#include "engine/elements.h"
#include "engine/layout.h"
#include "engine/tuning.h"

namespace {

using namespace fusedopt;
using cpu::Kernel;

constexpr double kStep = 9;  // late enough for RAdam to divide
constexpr int64_t kSizes[] = {1, 2, 3, 15, 16, 17, kTile - 1, kTile, kTile + 1, 1000};

constexpr double kClip = 0.3;  // what rules see of gradients is multiplied by this
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kSpecial[] = {kNan, kInfinity, -kInfinity, -kNan, 3.3e38, -0.0, 6e4, 1e-40};

struct Case {
  const Kernel* kernel;
  std::vector<double> options;
};

// Options in the order of each rule's Options; the step is 3, and for SGD also its first.
const std::vector<Case> kCases = {
    {&cpu::kSgd[0], {0.1, 0, 0, 0.01, 0}},
    {&cpu::kSgd[1], {0.1, 0.9, 0.1, 0.01, 0}},
    {&cpu::kSgd[1], {0.1, 0.9, 0, 0, 1}},
    {&cpu::kAdagrad, {0.1, 0.01, 1e-10, 0.01}},
    {&cpu::kRmsprop[0][0], {0.01, 0.99, 1e-8, 0.01, 0}},
    {&cpu::kRmsprop[0][1], {0.01, 0.99, 1e-8, 0, 0}},
    {&cpu::kRmsprop[1][0], {0.01, 0.99, 1e-8, 0.01, 0.9}},
    {&cpu::kRmsprop[1][1], {0.01, 0.4, 1e-8, 0.01, 0.9}},
    {&cpu::kAdadelta, {1.0, 0.9, 1e-6, 0.01}},
    {&cpu::kAdam[0], {1e-3, 0.9, 0.999, 1e-8, 0.01, 1}},
    {&cpu::kAdam[1], {1e-3, 0.4, 0.999, 1e-8, 0.01, 0}},
    {&cpu::kAdamax, {2e-3, 0.9, 0.999, 1e-8, 0.01}},
    {&cpu::kRadam, {1e-3, 0.9, 0.999, 1e-8, 0.01, 0}},
    {&cpu::kRadam, {1e-3, 0.9, 0.5, 1e-8, 0.01, 1}},
    {&cpu::kNadam, {2e-3, 0.9, 0.999, 1e-8, 0.01, 0.004, 0}},
    {&cpu::kNadam, {2e-3, 0.9, 0.5, 1e-8, 0.01, 0.7, 1}},
    {&cpu::kAsgd, {0.1, 0.5, 0.75, 3, 0.01}},
    {&cpu::kRprop, {0.5, 1.2, 1e-6, 50}},
    {&cpu::kLion, {1e-4, 0.9, 0.99, 0.1}},
    {&cpu::kAverage, {0.1}},
    {&cpu::kAverage, {0.7}},
    {&cpu::kClamp, {-0.2, 0.1}},
    {&cpu::kScale, {0.7}},
    {&cpu::kMean, {3}},
    {&cpu::kWeighted, {0.9, 0.1}},
};

// Five operands of all sizes in kSizes, filled with numbers that depend on the index only.
struct Memory {
  Dtype dtype;
  size_t item;
  std::vector<std::vector<char>> bytes;  // by operand
  std::vector<TensorEntry> tensors;
  int64_t elements = 0;

  // With `special`, every third gradient is one that conversions treat apart.
  Memory(Dtype type, int64_t stride, size_t misaligned, bool special = false)
      : dtype(type), item(item_bytes(type)) {
    int64_t total = 0;
    for (const int64_t size : kSizes) total += size;
    for (int k = 0; k < kMaxOperands; ++k) bytes.emplace_back(total * stride * item + misaligned);
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    for (const int64_t size : kSizes) {
      TensorEntry tensor{};
      for (int k = 0; k < kMaxOperands; ++k) {
        char* at = bytes[k].data() + misaligned + elements * stride * item;
        tensor.operands[k] = at;
        for (int64_t i = 0; i < size; ++i) {
          double value = normal(random);
          if (special && k == 1 && i % 3 == 0) value = kSpecial[i / 3 % std::size(kSpecial)];
          store(at + i * stride * item, dtype, k < 2 ? value : value * value + 1.5);
        }
      }
      tensor.start = elements;
      tensor.numel = size;
      tensor.layout = -1;
      tensor.maximize = size % 2 == 0;
      tensors.push_back(tensor);
      elements += size;
    }
  }

  // The elements of one operand, without what lies between them.
  std::string dense(int operand, int64_t stride) const {
    std::string all;
    for (const TensorEntry& tensor : tensors) {
      for (int64_t i = 0; i < tensor.numel; ++i) {
        all.append(static_cast<const char*>(tensor.operands[operand]) + i * stride * item, item);
      }
    }
    return all;
  }
};

struct Variation {
  int isa = 0;
  int64_t cut = 1 << 30;  // the work list is swept in pieces of this many elements
  int64_t stride = 1;
  size_t misaligned = 0;
  double grad_scale = 1;
  bool scaled = false;
  bool special = false;
};

Counts counts_of(const Case& item, double step) {
  Counts counts{step, {0.6, 0.25}};
  item.kernel->advance(item.options.data(), counts);
  return counts;
}

// All operands after one step, as one string of bytes.
std::string run(const Case& item, Dtype dtype, double step, const Variation& how) {
  Memory memory(dtype, how.stride, how.misaligned, how.special);
  std::vector<LayoutBuffer> buffers;
  std::vector<Layout> layouts;
  if (how.stride != 1) {
    for (size_t i = 0; i < memory.tensors.size(); ++i) {
      const std::vector<const int64_t*> strides(kMaxOperands, &how.stride);
      buffers.push_back(make_layout(1, &memory.tensors[i].numel, strides));
      memory.tensors[i].layout = static_cast<int32_t>(i);
    }
    for (const LayoutBuffer& buffer : buffers) layouts.push_back(buffer.view());
  }
  const int compute = Kernel::compute(dtype);
  CHECK(item.options.size() == item.kernel->options);
  std::vector<double> rule(item.kernel->rule_bytes[compute] / sizeof(double) + 1);
  item.kernel->prepare[compute](item.options.data(), counts_of(item, step), kLargest[1],
                                rule.data());
  const Table table{memory.tensors.data(),
                    static_cast<int64_t>(memory.tensors.size()),
                    rule.data(),
                    layouts.data(),
                    how.scaled,
                    how.grad_scale,
                    nullptr,
                    nullptr,
                    kClip};
  for (int64_t begin = 0; begin < memory.elements; begin += how.cut) {
    const int64_t end = std::min(begin + how.cut, memory.elements);
    item.kernel->sweep[how.isa][static_cast<int>(dtype)](table, begin, end);
  }
  std::string all;
  for (int k = 0; k < 2 + item.kernel->states; ++k) all += memory.dense(k, how.stride);
  return all;
}

void test_the_same_bits() {
  for (const Case& item : kCases) {
    for (int type = 0; type < kDtypes; ++type) {
      const auto dtype = static_cast<Dtype>(type);
      for (const double step : {0.0, kStep}) {
        if (step == 0 && item.kernel != &cpu::kSgd[1]) continue;
        const std::string expected = run(item, dtype, step, {});
        CHECK(expected != std::string(expected.size(), '\0'));
        for (int isa = 0; isa < cpu::kIsas; ++isa) {
          if (!cpu::isa_detected(isa)) continue;
          CHECK(run(item, dtype, step, {isa}) == expected);
          CHECK(run(item, dtype, step, {isa, 1}) == expected);
          CHECK(run(item, dtype, step, {isa, 37}) == expected);
          CHECK(run(item, dtype, step, {isa, 1 << 30, 1, 1}) == expected);
          CHECK(run(item, dtype, step, {isa, 100, 1, 3}) == expected);
          CHECK(run(item, dtype, step, {isa, 50, 3}) == expected);
          CHECK(run(item, dtype, step, {isa, 1 << 30, 2, 1}) == expected);
        }
      }
    }
  }
}

// NaNs, infinities, numbers that round to infinity, zeros and subnormals.
void test_the_same_bits_of_special_numbers() {
  for (const Case& item : kCases) {
    for (int type = 0; type < kDtypes; ++type) {
      const auto dtype = static_cast<Dtype>(type);
      const std::string expected = run(item, dtype, kStep, {0, 1 << 30, 1, 0, 1, false, true});
      for (int isa = 0; isa < cpu::kIsas; ++isa) {
        if (!cpu::isa_detected(isa)) continue;
        CHECK(run(item, dtype, kStep, {isa, 1 << 30, 1, 0, 1, false, true}) == expected);
        CHECK(run(item, dtype, kStep, {isa, 37, 1, 1, 1, false, true}) == expected);
        CHECK(run(item, dtype, kStep, {isa, 1 << 30, 3, 0, 1, false, true}) == expected);
      }
    }
  }
}

// A scale of 1 changes nothing; with a scale of 4 the stored gradient is a quarter of what it was.
void test_gradient_scale() {
  for (const Case& item : kCases) {
    for (int type = 0; type < kDtypes; ++type) {
      const auto dtype = static_cast<Dtype>(type);
      const std::string expected = run(item, dtype, kStep, {});
      for (int isa = 0; isa < cpu::kIsas; ++isa) {
        if (!cpu::isa_detected(isa)) continue;
        CHECK(run(item, dtype, kStep, {isa, 77, 1, 0, 1.0, true}) == expected);
        const std::string scaled = run(item, dtype, kStep, {isa, 1 << 30, 1, 0, 4.0, true});
        CHECK(scaled != expected);
        CHECK(scaled == run(item, dtype, kStep, {isa, 77, 3, 1, 4.0, true}));
        // Operand 1 is the gradient: in float32 and float64 dividing by 4 is exact.
        Memory before(dtype, 1, 0);
        const size_t grads = static_cast<size_t>(before.elements) * before.item;
        if (dtype == Dtype::kFloat32) {
          for (size_t at = grads; at < 2 * grads; at += sizeof(float)) {
            float full, quarter;
            std::memcpy(&full, expected.data() + at, sizeof full);
            std::memcpy(&quarter, scaled.data() + at, sizeof quarter);
            CHECK(quarter == full / 4);
          }
        }
      }
    }
  }
}

// Nothing outside a tensor is written, however it lies.
void test_neighbours_are_left_alone() {
  for (const Case& item : kCases) {
    for (int type = 0; type < kDtypes; ++type) {
      const auto dtype = static_cast<Dtype>(type);
      const size_t size = kItemBytes[type];
      for (int isa = 0; isa < cpu::kIsas; ++isa) {
        if (!cpu::isa_detected(isa)) continue;
        std::vector<std::vector<char>> bytes(kMaxOperands, std::vector<char>(300 * size, 0x3c));
        TensorEntry tensor{};
        for (int k = 0; k < kMaxOperands; ++k) tensor.operands[k] = bytes[k].data() + 10 * size;
        tensor.start = 0;
        tensor.numel = 277;
        tensor.layout = -1;
        std::vector<double> rule(64);
        item.kernel->prepare[Kernel::compute(dtype)](item.options.data(), counts_of(item, kStep),
                                                     kLargest[1], rule.data());
        const Table table{&tensor, 1, rule.data(), nullptr, false, 1};
        item.kernel->sweep[isa][type](table, 0, tensor.numel);
        for (const auto& operand : bytes) {
          for (size_t i = 0; i < operand.size(); ++i) {
            if (i < 10 * size || i >= 287 * size) CHECK(operand[i] == 0x3c);
          }
        }
      }
    }
  }
}

// run() steps every element once, however many threads its caller has.
void test_sharing_among_threads() {
  std::vector<float> large[4];
  for (auto& operand : large) operand.assign(kParallelElements + 5, 0.5f);
  TensorEntry tensor{};
  for (int k = 0; k < 4; ++k) tensor.operands[k] = large[k].data();
  tensor.start = 0;
  tensor.numel = kParallelElements + 5;
  tensor.layout = -1;
  std::vector<double> rule(64);
  cpu::kAdam[0].prepare[0](kCases[9].options.data(), {kStep}, kLargest[1], rule.data());
  const Table table{&tensor, 1, rule.data(), nullptr, false, 1};
  cpu::run(cpu::kAdam[0], Dtype::kFloat32, table,
           [](int64_t most, void (*task)(int64_t, void*), void* context) {
             CHECK(most == kParallelElements / kSmallestChunk + 1);
             std::thread other(task, most / 2, context);
             task(0, context);
             other.join();
           });
  CHECK(large[0].front() != 0.5f);
  for (const float value : large[0]) CHECK(value == large[0].front());
}

std::vector<std::pair<int64_t, int64_t>> swept;

// Threads get multiples of kGranularity of a tensor, whatever the sizes of the tensors before it.
void test_cuts() {
  for (const int64_t large : {kParallelElements + 1, kMaxChunks * kChunkElements + 12345}) {
    std::vector<TensorEntry> tensors;
    int64_t elements = 0;
    for (const int64_t size : {int64_t{1}, large, int64_t{33}, large, int64_t{31}}) {
      TensorEntry& tensor = tensors.emplace_back();
      tensor.numel = size;
      append(tensor, elements);
    }
    Kernel kernel{};
    for (auto& sweep : kernel.sweep) {
      sweep[0] = [](const Table&, int64_t begin, int64_t end) { swept.emplace_back(begin, end); };
    }
    const Table table{tensors.data(), 5, nullptr, nullptr, false, 1};
    swept.clear();
    cpu::run(kernel, Dtype::kFloat32, table,
             [](int64_t, void (*task)(int64_t, void*), void* context) { task(0, context); });
    CHECK(swept.size() > 8 && swept.front().first == 0);
    CHECK(swept.back().second == tensors.back().start + tensors.back().numel);
    for (size_t i = 1; i < swept.size(); ++i) {
      const int64_t cut = swept[i].first;
      CHECK(cut == swept[i - 1].second);
      const TensorEntry& tensor = tensors[find_tensor(table, cut)];
      CHECK(cut < tensor.start + tensor.numel && (cut - tensor.start) % kGranularity == 0);
    }
  }
}

void test_choosing_an_instruction_set() {
  CHECK(cpu::select_isa("baseline").empty());
  CHECK(cpu::active_isa() == 0);
  CHECK(cpu::select_isa("sse9").find("sse9") != std::string::npos);
  CHECK(cpu::select_isa(nullptr).empty());
  CHECK(cpu::isa_detected(cpu::active_isa()));
}

}  // namespace

int main() {
  test_choosing_an_instruction_set();
  test_the_same_bits();
  test_the_same_bits_of_special_numbers();
  test_gradient_scale();
  test_neighbours_are_left_alone();
  test_sharing_among_threads();
  test_cuts();
}
