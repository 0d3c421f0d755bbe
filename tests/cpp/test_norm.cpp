// Norms: one value on each instruction set, however blocks are shared; and the exact one.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/norm.h"
#include "engine/elements.h"

namespace {

using namespace fusedopt;

constexpr int64_t kSizes[] = {1, 7, 8, 15, 16, 17, kNormBlock - 1, kNormBlock, 300001};
constexpr Norm kAll[] = {Norm::kSquares, Norm::kMagnitudes, Norm::kLargest, Norm::kSmallest};

void serial(int64_t, void (*task)(int64_t, void*), void* context) { task(0, context); }

void threads(int64_t most, void (*task)(int64_t, void*), void* context) {
  std::vector<std::thread> all;
  for (int64_t first = 0; first < 3; ++first) all.emplace_back(task, first * most / 3, context);
  for (std::thread& each : all) each.join();
}

struct Tensors {
  std::vector<std::vector<char>> bytes;
  std::vector<NormEntry> entries;
  std::vector<double> values;

  explicit Tensors(Dtype dtype, double nan_at = -1) {
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    int64_t start = 0, blocks = 0;
    for (const int64_t size : kSizes) {
      std::vector<char>& tensor = bytes.emplace_back(size * item_bytes(dtype));
      for (int64_t i = 0; i < size; ++i) {
        double value = rounded(normal(random), dtype);
        if (nan_at == static_cast<double>(start + i)) value = std::nan("");
        store(tensor.data() + i * item_bytes(dtype), dtype, value);
        values.push_back(value);
      }
      entries.push_back({tensor.data(), start, size, blocks, dtype});
      start += size;
      blocks += norm_blocks(size);
    }
  }

  double norm(Norm kind, cpu::Parallel parallel = serial) const {
    const NormEntry& last = entries.back();
    std::vector<double> results(last.blocks + norm_blocks(last.numel));
    return cpu::norm(kind, 1, entries.data(), static_cast<int64_t>(entries.size()), results.data(),
                     parallel);
  }

  double exact(Norm kind) const {
    long double sum = 0;
    double least = std::numeric_limits<double>::infinity(), greatest = 0;
    for (const double value : values) {
      const double size = std::fabs(value);
      sum += kind == Norm::kSquares ? static_cast<long double>(value) * value : size;
      least = std::min(least, size);
      greatest = std::max(greatest, size);
    }
    if (kind == Norm::kLargest) return greatest;
    return kind == Norm::kSmallest ? least : static_cast<double>(sum);
  }
};

void test_one_value() {
  for (int type = 0; type < kDtypes; ++type) {
    const Tensors tensors(static_cast<Dtype>(type));
    for (const Norm kind : kAll) {
      CHECK(cpu::select_isa("baseline").empty());
      const double expected = tensors.norm(kind);
      const double exact = tensors.exact(kind);
      CHECK(std::fabs(expected - exact) <= 1e-13 * exact);
      for (int isa = 0; isa < cpu::kIsas; ++isa) {
        if (!cpu::isa_detected(isa)) continue;
        CHECK(cpu::select_isa(cpu::kIsaNames[isa]).empty());
        CHECK(tensors.norm(kind) == expected);
        CHECK(tensors.norm(kind, threads) == expected);
      }
    }
  }
}

void test_a_nan_wins() {
  for (const double at : {0.0, 5.0, 46.0, 300000.0}) {
    const Tensors tensors(Dtype::kFloat32, at);
    for (const Norm kind : kAll) CHECK(std::isnan(tensors.norm(kind)));
  }
}

}  // namespace

int main() {
  test_one_value();
  test_a_nan_wins();
}
