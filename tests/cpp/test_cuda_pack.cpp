// How the CUDA side cuts a step into launches: nothing is lost or overwritten, and few are enough.
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "cuda/pack.h"
#include "cuda/prepare.cuh"
#include "cuda/sweep.cuh"
#include "engine/layout.h"
#include "engine/tuning.h"

namespace {

using namespace fusedopt;
using cuda::Kernel;

constexpr int kMultiprocessors = 132;

// Like Adam in float32, or with three states like its amsgrad.
Kernel kernel_with(int states, int scalars = 0) {
  return {"test", states, scalars, 6, {32, 64}, {}, {}, {}};
}

std::vector<TensorEntry> make_tensors(int count, int64_t numel) {
  std::vector<TensorEntry> tensors(count);
  int64_t start = 0;
  uint64_t address = 4096;
  for (TensorEntry& tensor : tensors) {
    for (void*& operand : tensor.operands) {
      operand = reinterpret_cast<void*>(address);
      address += 4096;
    }
    tensor.start = start;
    tensor.numel = numel;
    tensor.layout = -1;
    start += numel;
  }
  return tensors;
}

int count_launches(const Kernel& kernel, const Table& table, const cuda::Scalars& scalars) {
  cuda::SweepPacker packer(kernel, Dtype::kFloat32, table, scalars, kMultiprocessors);
  const auto args = std::make_unique<cuda::SweepArguments>();
  int launches = 0;
  while (packer.next(*args) != 0) ++launches;
  return launches;
}

void test_few_launches_are_enough() {
  const std::vector<char> rules(64);
  for (const int states : {2, 3}) {
    const std::vector<TensorEntry> few = make_tensors(161, 160000);
    const std::vector<TensorEntry> many = make_tensors(1000, 64);
    const Table resnet{few.data(), 161, rules.data(), nullptr, false, 1};
    const Table small{many.data(), 1000, rules.data(), nullptr, false, 1};
    CHECK(count_launches(kernel_with(states), resnet, {}) == 1);
    CHECK(count_launches(kernel_with(states), small, {}) == 2);
    const cuda::DeviceRules made{nullptr, nullptr, 1000, nullptr};
    CHECK(count_launches(kernel_with(states), small, {nullptr, nullptr, &made}) == 2);
  }
  CHECK(count_launches(kernel_with(2), {}, {}) == 0);
}

void test_chunks() {
  for (int type = 0; type < kDtypes; ++type) {
    const auto dtype = static_cast<Dtype>(type);
    const int64_t row = kRowBytes / kItemBytes[type];
    CHECK(cuda::choose_chunk(1, 1, dtype, kMultiprocessors) == row);
    CHECK(cuda::choose_chunk(25'000'000, 161, dtype, kMultiprocessors) % row == 0);
    CHECK(cuda::choose_chunk(1 << 30, 1, dtype, kMultiprocessors) * kItemBytes[type] ==
          kMaxChunkBytes);
    for (int bits = 0; bits < 60; ++bits) {  // however much there is, the grid's limit holds
      const int64_t elements = int64_t{1} << bits;
      const int64_t chunk = cuda::choose_chunk(elements, 1000, dtype, kMultiprocessors);
      CHECK(chunk % row == 0 && elements / chunk + 2000 <= cuda::kMaxBlocks);
    }
  }
}

// Random tables, with many rules and layouts, come out as they went in; every block finds its
// tensor.
void test_what_is_packed_is_what_was_given() {
  std::mt19937 random(2);
  for (int trial = 0; trial < 40; ++trial) {
    const int states = trial % 4;
    const int operands = 2 + states;
    const Kernel kernel = kernel_with(states);
    std::vector<TensorEntry> tensors = make_tensors(1 + random() % 1500, 1);
    std::vector<LayoutBuffer> buffers;
    std::vector<char> rules;
    int64_t start = 0;
    const bool long_layouts = trial % 3 == 0;
    for (TensorEntry& tensor : tensors) {
      const int shift = static_cast<int>(random() % 4);
      for (void*& operand : tensor.operands) operand = static_cast<char*>(operand) + 4 * shift;
      tensor.start = start;
      tensor.numel = 1 + random() % 5000;
      start += tensor.numel;
      tensor.maximize = random() % 2;
      if (random() % 3 == 0 || rules.empty()) {
        for (int i = 0; i < 32; ++i) rules.push_back(static_cast<char>(random()));
      }
      tensor.rule = static_cast<int32_t>(rules.size() / 32) - 1;
      if (random() % 4 == 0) {
        const int ndim = long_layouts ? 1 + static_cast<int>(random() % 60) : 2;
        std::vector<int64_t> numbers(ndim * (1 + operands));
        for (int64_t& number : numbers) number = static_cast<int64_t>(random());
        tensor.layout = static_cast<int32_t>(buffers.size());
        buffers.push_back({numbers, ndim});
      }
    }
    std::vector<Layout> layouts;
    for (const LayoutBuffer& buffer : buffers) layouts.push_back(buffer.view());
    const Table table{tensors.data(), static_cast<int64_t>(tensors.size()),
                      rules.data(),   layouts.data(),
                      true,           5};
    const cuda::Scalars scalars{};
    cuda::SweepPacker packer(kernel, Dtype::kFloat32, table, scalars, 1);
    const auto args = std::make_unique<cuda::SweepArguments>();
    size_t next = 0;
    while (const uint32_t blocks = packer.next(*args)) {
      uint32_t first = 0;
      CHECK(args->scaled == 1 && args->scale == 5 && args->device_rules == nullptr);
      for (int i = 0; i < args->count; ++i, ++next) {
        const TensorEntry& tensor = tensors[next];
        const uint64_t* words = args->words + i * (operands + cuda::kTensorWords);
        const cuda::Place place = cuda::place_of(words + operands + 1);
        for (int k = 0; k < operands; ++k) {
          CHECK(words[k] == reinterpret_cast<uint64_t>(tensor.operands[k]));
        }
        CHECK(words[operands] == static_cast<uint64_t>(tensor.numel));
        CHECK(place.first == first && place.maximize == tensor.maximize);
        CHECK(std::memcmp(args->words + place.rule, rules.data() + tensor.rule * 32, 32) == 0);
        CHECK(place.vectors == (tensor.layout < 0) && (place.layout == 0) == (tensor.layout < 0));
        if (tensor.layout >= 0) {
          const LayoutBuffer& buffer = buffers[tensor.layout];
          CHECK(args->words[place.layout] == static_cast<uint64_t>(buffer.ndim));
          CHECK(std::memcmp(args->words + place.layout + 1, buffer.numbers.data(),
                            buffer.numbers.size() * sizeof(int64_t)) == 0);
        }
        const auto at = reinterpret_cast<uint64_t>(tensor.operands[0]);
        CHECK(place.lead == (place.vectors ? at % 16 / 4 : 0));
        const int64_t chunks = (place.lead + tensor.numel + args->chunk - 1) / args->chunk;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          CHECK(cuda::find_words(*args, operands + cuda::kTensorWords,
                                 first + static_cast<uint32_t>(chunk)) == words);
        }
        first += static_cast<uint32_t>(chunks);
      }
      CHECK(first == blocks);
    }
    CHECK(next == tensors.size());
  }
}

// The device can't read an element across its boundary, so that is refused.
void test_a_misaligned_tensor_is_refused() {
  std::vector<TensorEntry> tensors = make_tensors(1, 10);
  const std::vector<char> rules(64);
  tensors[0].operands[3] = reinterpret_cast<void*>(4098);
  const Table table{tensors.data(), 1, rules.data(), nullptr, false, 1};
  bool refused = false;
  try {
    count_launches(kernel_with(2), table, {});
  } catch (const std::runtime_error&) {
    refused = true;
  }
  CHECK(refused);
  CHECK(cuda::is_aligned(tensors[0].operands[3], Format::kFloat16));
}

// Where the rules' order jumps back or far ahead, another launch begins.
void test_rules_on_the_device_in_any_order() {
  std::vector<TensorEntry> tensors = make_tensors(4, 10);
  const int32_t order[] = {7, 9, 3, 9000};
  for (int i = 0; i < 4; ++i) tensors[i].rule = order[i];
  const Table table{tensors.data(), 4, nullptr, nullptr, false, 1};
  const cuda::DeviceRules made{nullptr, nullptr, 9001, reinterpret_cast<void*>(1 << 20)};
  const cuda::Scalars scalars{nullptr, nullptr, &made};
  const Kernel kernel = kernel_with(2);
  cuda::SweepPacker packer(kernel, Dtype::kFloat32, table, scalars, 1);
  const auto args = std::make_unique<cuda::SweepArguments>();
  std::vector<int64_t> found;
  while (packer.next(*args) != 0) {
    for (int i = 0; i < args->count; ++i) {
      const auto* base = static_cast<const char*>(args->device_rules);
      const cuda::Place place = cuda::place_of(args->words + i * 6 + 5);
      found.push_back((base - reinterpret_cast<const char*>(1 << 20)) / 32 + place.rule);
    }
  }
  CHECK(found == std::vector<int64_t>(order, order + 4));
}

void test_preparing_many_rules(int more) {
  const Kernel kernel = kernel_with(2, more);
  for (const int per_group : {1, 7, 4000}) {
    std::vector<cuda::RuleSource> sources;
    std::vector<cuda::Number> options;
    for (int i = 0; i < 4000; ++i) {
      if (i % per_group == 0) {
        for (int k = 0; k < 6; ++k) options.push_back({i + k / 8.0, nullptr, {}});
      }
      sources.push_back(
          {i / per_group, {double(i), i % 2 ? &sources : nullptr, Dtype::kFloat64}, {}});
      for (int k = 0; k < more; ++k) sources.back().scalars[k] = {i + k / 4.0, nullptr, {}};
    }
    std::vector<char> memory(1);
    const cuda::DeviceRules rules{options.data(), sources.data(), 4000, memory.data()};
    const cuda::Scalars scalars{nullptr, nullptr, &rules};
    cuda::PreparePacker packer(kernel, Dtype::kFloat64, scalars);
    const auto args = std::make_unique<cuda::PrepareArguments>();
    int next = 0;
    int launches = 0;
    for (; const uint32_t blocks = packer.next(*args); ++launches) {
      CHECK(args->rules == memory.data() + next * 64);
      CHECK(static_cast<int>(blocks) == (args->count + kBlockThreads - 1) / kBlockThreads);
      for (int i = 0; i < args->count; ++i, ++next) {
        for (int k = 0; k < 6; ++k) {
          const int group = args->groups[i];
          CHECK(cuda::number_at(args->options[group][k], args->option_types[group][k]) ==
                next / per_group * per_group + k / 8.0);
        }
        const int at = i * (1 + more);
        const bool here = args->count_types[at] == cuda::kGiven;
        CHECK(here == (next % 2 == 0));
        if (here) CHECK(cuda::number_at(args->counts[at], cuda::kGiven) == next);
        if (!here) CHECK(args->counts[at] == reinterpret_cast<uint64_t>(&sources));
        for (int k = 0; k < more; ++k) {
          CHECK(args->count_types[at + 1 + k] == cuda::kGiven);
          CHECK(cuda::number_at(args->counts[at + 1 + k], cuda::kGiven) == next + k / 4.0);
        }
      }
    }
    CHECK(next == 4000);
    const int rules_of_a_launch = cuda::kPreparedRules / (1 + more);
    const int most = per_group == 1 ? cuda::kPreparedGroups : rules_of_a_launch;
    CHECK(launches == (4000 + most - 1) / most);
  }
}

}  // namespace

int main() {
  test_few_launches_are_enough();
  test_chunks();
  test_what_is_packed_is_what_was_given();
  test_a_misaligned_tensor_is_refused();
  test_rules_on_the_device_in_any_order();
  test_preparing_many_rules(0);
  test_preparing_many_rules(kMaxScalars);
}
