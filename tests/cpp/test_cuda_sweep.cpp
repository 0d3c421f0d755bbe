// The CUDA kernels' bodies on the host, over whole grids: the same bits as the CPU sweep, whatever
// the alignment, the strides, the number of launches, and where the numbers come from.
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
#include "cuda/sweep.cuh"
#include "engine/elements.h"
#include "engine/layout.h"
#include "rules/adadelta.h"
#include "rules/adagrad.h"
#include "rules/adam.h"
#include "rules/adamax.h"
#include "rules/asgd.h"
#include "rules/lion.h"
#include "rules/nadam.h"
#include "rules/radam.h"
#include "rules/rmsprop.h"
#include "rules/rprop.h"
#include "rules/sgd.h"

namespace {

using namespace fusedopt;

constexpr double kClip = 0.3;  // what rules see of gradients is multiplied by this

struct Case {
  const cpu::Kernel* cpu;
  void (*sweep[kDtypes])(const cuda::SweepArguments&, uint32_t block, uint32_t thread);
  void (*prepare[2])(const cuda::PrepareArguments&, uint32_t index);
  std::vector<double> options;
  bool counts;  // steps; else the rule only asks whether this is the first
  int scalars;  // that the state holds beside the step count

  cuda::Kernel kernel() const {
    return {"test", cpu->states, scalars, cpu->options, {cpu->rule_bytes[0], cpu->rule_bytes[1]},
            {},     {},          {}};
  }
};

template <typename Float, typename Double>
Case make_case(const cpu::Kernel& cpu, std::vector<double> options, bool counts = true) {
  return {&cpu,
          {cuda::sweep_chunk<Float, Dtype::kFloat32>, cuda::sweep_chunk<Double, Dtype::kFloat64>,
           cuda::sweep_chunk<Float, Dtype::kBFloat16>, cuda::sweep_chunk<Float, Dtype::kFloat16>},
          {cuda::prepare_rule<Float>, cuda::prepare_rule<Double>},
          std::move(options),
          counts,
          kScalarsOf<typename Float::Options>};
}

// The function that makes the case of a rule with these template options.
#define CASE(rule, ...) \
  make_case<rule<float __VA_OPT__(, ) __VA_ARGS__>, rule<double __VA_OPT__(, ) __VA_ARGS__>>

const std::vector<Case> kCases = {
    CASE(Sgd, false)(cpu::kSgd[0], {0.1, 0, 0, 0.01, 0}, false),
    CASE(Sgd, true)(cpu::kSgd[1], {0.1, 0.9, 0.1, 0.01, 0}, false),
    CASE(Sgd, true)(cpu::kSgd[1], {0.1, 0.9, 0, 0, 1}, false),
    CASE(Adagrad)(cpu::kAdagrad, {0.1, 0.01, 1e-10, 0.01}),
    CASE(Rmsprop, false, false)(cpu::kRmsprop[0][0], {0.01, 0.99, 1e-8, 0.01, 0}),
    CASE(Rmsprop, false, true)(cpu::kRmsprop[0][1], {0.01, 0.99, 1e-8, 0, 0}),
    CASE(Rmsprop, true, false)(cpu::kRmsprop[1][0], {0.01, 0.99, 1e-8, 0.01, 0.9}),
    CASE(Rmsprop, true, true)(cpu::kRmsprop[1][1], {0.01, 0.4, 1e-8, 0.01, 0.9}),
    CASE(Adadelta)(cpu::kAdadelta, {1.0, 0.9, 1e-6, 0.01}),
    CASE(Adam, false)(cpu::kAdam[0], {1e-3, 0.9, 0.999, 1e-8, 0.01, 1}),
    CASE(Adam, true)(cpu::kAdam[1], {1e-3, 0.4, 0.999, 1e-8, 0.01, 0}),
    CASE(Adamax)(cpu::kAdamax, {2e-3, 0.9, 0.999, 1e-8, 0.01}),
    CASE(Radam)(cpu::kRadam, {1e-3, 0.9, 0.999, 1e-8, 0.01, 0}),
    CASE(Radam)(cpu::kRadam, {1e-3, 0.9, 0.5, 1e-8, 0.01, 1}),
    CASE(Nadam)(cpu::kNadam, {2e-3, 0.9, 0.999, 1e-8, 0.01, 0.004, 0}),
    CASE(Nadam)(cpu::kNadam, {2e-3, 0.9, 0.5, 1e-8, 0.01, 0.7, 1}),
    CASE(Asgd)(cpu::kAsgd, {0.1, 0.5, 0.75, 3, 0.01}),
    CASE(Rprop)(cpu::kRprop, {0.5, 1.2, 1e-6, 50}),
    CASE(Lion)(cpu::kLion, {1e-4, 0.9, 0.99, 0.1}, false),
};

// How the operands of all tensors lie.
enum class Lie { kAligned, kShiftedAlike, kShiftedUnlike, kStrided };

// Tensors of these sizes, each operand in memory of its own, so that the sanitizers see every step
// beyond it. Strided ones have two columns: the gradient is transposed, the states have gaps.
struct Memory {
  std::vector<std::unique_ptr<char[]>> blocks;
  std::vector<size_t> bytes;
  std::vector<TensorEntry> tensors;
  std::vector<LayoutBuffer> buffers;
  std::vector<Layout> layouts;

  Memory(Dtype dtype, const std::vector<int64_t>& sizes, Lie lie, int rules) {
    const size_t item = item_bytes(dtype);
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    int64_t start = 0;
    for (const int64_t size : sizes) {
      TensorEntry tensor{};
      const int64_t room = lie == Lie::kStrided ? 4 * size : size;
      for (int k = 0; k < kFirstState + kMaxStates; ++k) {
        const int64_t shift = lie == Lie::kShiftedAlike    ? 3
                              : lie == Lie::kShiftedUnlike ? k % 3
                                                           : 0;
        bytes.push_back((room + shift) * item);
        blocks.emplace_back(new char[bytes.back()]);  // aligned to 16 bytes
        char* at = blocks.back().get();
        for (int64_t i = 0; i < room + shift; ++i) {
          const double value = normal(random);
          store(at + i * item, dtype, k < 2 ? value : value * value + 1.5);
        }
        tensor.operands[k] = at + shift * item;
      }
      tensor.start = start;
      tensor.numel = lie == Lie::kStrided ? 2 * size : size;
      tensor.rule = static_cast<int32_t>(tensors.size()) * rules / static_cast<int>(sizes.size());
      tensor.maximize = size % 2 == 0;
      tensor.layout = -1;
      if (lie == Lie::kStrided) {
        const int64_t shape[] = {size, 2};
        const int64_t rows[] = {2, 1}, columns[] = {1, size}, gaps[] = {4, 2};
        std::vector<const int64_t*> strides = {rows, columns};
        for (int k = 0; k < kMaxStates; ++k) strides.push_back(k % 2 == 0 ? gaps : rows);
        buffers.push_back(make_layout(2, shape, strides));
        tensor.layout = static_cast<int32_t>(buffers.size()) - 1;
      }
      start += tensor.numel;
      tensors.push_back(tensor);
    }
    for (const LayoutBuffer& buffer : buffers) layouts.push_back(buffer.view());
  }

  std::string all() const {
    std::string text;
    for (size_t i = 0; i < blocks.size(); ++i) text.append(blocks[i].get(), bytes[i]);
    return text;
  }

  Table table(const std::vector<char>& rules, bool scaled, double scale) const {
    return {tensors.data(), static_cast<int64_t>(tensors.size()),
            rules.data(),   layouts.data(),
            scaled,         scale,
            nullptr,        nullptr,
            kClip};
  }
};

constexpr int kRules = 3;  // with steps of 7, 8, 9; for rules that only ask for the first: 0, 1, 2

double step_of(const Case& item, int rule) { return item.counts ? rule + 7 : rule; }

// A rule's number among all that has been given to it.
Counts counts_of(const Case& item, int rule) {
  Counts counts{step_of(item, rule), {0.75 - rule / 64.0, 0.25}};
  item.cpu->advance(item.options.data(), counts);
  return counts;
}

std::vector<char> make_rules(const Case& item, Dtype dtype) {
  const int compute = cpu::Kernel::compute(dtype);
  const size_t bytes = item.cpu->rule_bytes[compute];
  std::vector<char> rules(kRules * bytes);
  for (int i = 0; i < kRules; ++i) {
    item.cpu->prepare[compute](item.options.data(), counts_of(item, i), kLargest[1],
                               rules.data() + i * bytes);
  }
  return rules;
}

// Whole grids, one thread after the other. Returns the number of sweep launches.
int launch(const Case& item, Dtype dtype, const Table& table, const cuda::Scalars& scalars,
           int multiprocessors = 1) {
  const cuda::Kernel kernel = item.kernel();
  cuda::PreparePacker prepare(kernel, dtype, scalars);
  const auto arguments = std::make_unique<cuda::PrepareArguments>();
  while (const uint32_t blocks = prepare.next(*arguments)) {
    for (uint32_t i = 0; i < blocks * kBlockThreads; ++i) {
      item.prepare[cuda::Kernel::compute(dtype)](*arguments, i);
    }
  }
  int launches = 0;
  cuda::SweepPacker sweep(kernel, dtype, table, scalars, multiprocessors);
  const auto args = std::make_unique<cuda::SweepArguments>();
  for (; const uint32_t blocks = sweep.next(*args); ++launches) {
    for (uint32_t block = 0; block < blocks; ++block) {
      for (uint32_t thread = 0; thread < kBlockThreads; ++thread) {
        item.sweep[static_cast<int>(dtype)](*args, block, thread);
      }
    }
  }
  return launches;
}

std::string on_the_cpu(const Case& item, Dtype dtype, const std::vector<int64_t>& sizes, Lie lie,
                       bool scaled = false, double scale = 1) {
  const Memory memory(dtype, sizes, lie, kRules);
  const std::vector<char> rules = make_rules(item, dtype);
  const Table table = memory.table(rules, scaled, scale);
  const TensorEntry& last = memory.tensors.back();
  item.cpu->sweep[cpu::active_isa()][static_cast<int>(dtype)](table, 0, last.start + last.numel);
  return memory.all();
}

template <typename Body>
void for_each(const Body& body) {
  for (const Case& item : kCases) {
    for (int type = 0; type < kDtypes; ++type) body(item, static_cast<Dtype>(type));
  }
}

const std::vector<int64_t> kSizes = {1, 2, 3, 7, 8, 9, 17, 500, 1025, 2049, 5000};

void test_the_same_bits_as_on_the_cpu() {
  for_each([](const Case& item, Dtype dtype) {
    for (const Lie lie : {Lie::kAligned, Lie::kShiftedAlike, Lie::kShiftedUnlike, Lie::kStrided}) {
      for (const bool scaled : {false, true}) {
        const Memory memory(dtype, kSizes, lie, kRules);
        const std::string before = memory.all();
        const std::vector<char> rules = make_rules(item, dtype);
        CHECK(launch(item, dtype, memory.table(rules, scaled, 3), {}) == 1);
        CHECK(memory.all() != before);
        CHECK(memory.all() == on_the_cpu(item, dtype, kSizes, lie, scaled, 3));
      }
    }
  });
}

void test_chunks_of_several_rows() {
  const std::vector<int64_t> sizes = {100000, 3, 200001};
  for (const Lie lie : {Lie::kAligned, Lie::kShiftedAlike, Lie::kStrided}) {
    const Case& item = kCases[9];
    const Memory memory(Dtype::kFloat32, sizes, lie, kRules);
    const std::vector<char> rules = make_rules(item, Dtype::kFloat32);
    launch(item, Dtype::kFloat32, memory.table(rules, false, 1), {});
    CHECK(cuda::choose_chunk(300004, 3, Dtype::kFloat32, 1) == kMaxChunkBytes / 4);
    CHECK(memory.all() == on_the_cpu(item, Dtype::kFloat32, sizes, lie));
  }
}

void test_many_tensors_take_several_launches() {
  std::vector<int64_t> sizes;
  for (int i = 0; i < 1500; ++i) sizes.push_back(1 + i % 3);
  for (const Lie lie : {Lie::kAligned, Lie::kShiftedUnlike, Lie::kStrided}) {
    const Case& item = kCases[10];
    const Memory memory(Dtype::kBFloat16, sizes, lie, kRules);
    const std::vector<char> rules = make_rules(item, Dtype::kBFloat16);
    CHECK(launch(item, Dtype::kBFloat16, memory.table(rules, false, 1), {}) >= 3);
    CHECK(memory.all() == on_the_cpu(item, Dtype::kBFloat16, sizes, lie));
  }
}

// With these addresses in the table the sweep must read the scale there, and stop at an overflow.
void test_scale_and_overflow_on_the_device() {
  for_each([](const Case& item, Dtype dtype) {
    const std::vector<char> rules = make_rules(item, dtype);
    const float scale = 1024, finite = 0, overflow = 1;
    const Memory memory(dtype, kSizes, Lie::kShiftedAlike, kRules);
    const std::string before = memory.all();
    Table table = memory.table(rules, true, 7);
    table.clip = 2;  // isn't read either
    launch(item, dtype, table, {&overflow, &scale, nullptr, &kClip});
    CHECK(memory.all() == before);
    launch(item, dtype, table, {&finite, &scale, nullptr, &kClip});
    CHECK(memory.all() == on_the_cpu(item, dtype, kSizes, Lie::kShiftedAlike, true, scale));
  });
}

// Rules that are made from numbers on the device: a learning rate, and a count for each tensor.
void test_rules_made_on_the_device() {
  for_each([](Case item, Dtype dtype) {
    float rate = static_cast<float>(item.options[0]);
    double wide = item.options[1];
    item.options[0] = rate;
    Memory memory(dtype, kSizes, Lie::kAligned, kRules);
    const size_t count = memory.tensors.size();
    std::vector<float> steps(count);
    std::vector<double> wide_steps(count);
    std::vector<float> scalars(count * kMaxScalars);
    std::vector<float> scalars_after(scalars.size());
    std::vector<cuda::RuleSource> sources(count);
    for (size_t i = 0; i < count; ++i) {
      const Counts counts = counts_of(item, memory.tensors[i].rule);
      const double before = counts.step - 1;
      steps[i] = static_cast<float>(before);
      wide_steps[i] = before;
      sources[i] = {0, {0, &steps[i], Dtype::kFloat32}, {}};
      if (i % 3 == 1) sources[i].step = {0, &wide_steps[i], Dtype::kFloat64};
      if (i % 3 == 2 || !item.counts)
        sources[i].step = {step_of(item, memory.tensors[i].rule), nullptr, {}};
      for (int k = 0; k < item.scalars; ++k) {
        float& scalar = scalars[i * kMaxScalars + k];
        scalar = static_cast<float>(counts.before[k]);
        scalars_after[i * kMaxScalars + k] = static_cast<float>(counts.after[k]);
        sources[i].scalars[k] = {0, &scalar, Dtype::kFloat32};
      }
      memory.tensors[i].rule = static_cast<int32_t>(i);
    }
    std::vector<cuda::Number> options;
    for (const double option : item.options) options.push_back({option, nullptr, {}});
    options[0] = {0, &rate, Dtype::kFloat32};
    options[1] = {0, &wide, Dtype::kFloat64};
    std::vector<double> made(count * item.cpu->rule_bytes[1]);
    const cuda::DeviceRules rules{options.data(), sources.data(), static_cast<int64_t>(count),
                                  made.data()};
    const std::string before = memory.all();
    const std::vector<float> first = steps;
    const std::vector<float> first_scalars = scalars;
    float found_inf = 1;
    launch(item, dtype, memory.table({}, false, 1), {&found_inf, nullptr, &rules});
    CHECK(memory.all() == before && steps == first && scalars == first_scalars);
    found_inf = 0;
    launch(item, dtype, memory.table({}, false, 1), {&found_inf, nullptr, &rules});
    CHECK(memory.all() == on_the_cpu(item, dtype, kSizes, Lie::kAligned));
    CHECK(scalars == scalars_after);
    for (size_t i = 0; i < count; ++i) {
      CHECK(steps[i] == first[i] + (item.counts && i % 3 == 0 ? 1 : 0));
      CHECK(wide_steps[i] == first[i] + (item.counts && i % 3 == 1 ? 1 : 0));
    }
  });
}

// A sweep reads whole words of a rule; compute-sanitizer reports those that nobody wrote.
void test_a_rule_made_on_the_device_has_no_unwritten_bytes() {
  for_each([](const Case& item, Dtype dtype) {
    std::vector<cuda::Number> options;
    for (const double option : item.options) options.push_back({option, nullptr, {}});
    const cuda::RuleSource source{0, {1, nullptr, {}}, {}};
    std::vector<uint64_t> made[] = {std::vector<uint64_t>(32, 0), std::vector<uint64_t>(32, -1)};
    for (auto& memory : made) {
      const cuda::DeviceRules rules{options.data(), &source, 1, memory.data()};
      launch(item, dtype, Table{}, {nullptr, nullptr, &rules});
    }
    const size_t bytes = item.cpu->rule_bytes[cpu::Kernel::compute(dtype)];
    CHECK(std::memcmp(made[0].data(), made[1].data(), bytes) == 0);
  });
}

}  // namespace

int main() {
  test_the_same_bits_as_on_the_cpu();
  test_chunks_of_several_rows();
  test_many_tensors_take_several_launches();
  test_scale_and_overflow_on_the_device();
  test_rules_made_on_the_device();
  test_a_rule_made_on_the_device_has_no_unwritten_bytes();
}
