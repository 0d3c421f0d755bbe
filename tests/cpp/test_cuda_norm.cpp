// The norm's CUDA kernels, run over whole grids on the host: the CPU's bits.
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/norm.h"
#include "cuda/norm.cuh"
#include "engine/elements.h"

namespace {

using namespace fusedopt;

void serial(int64_t, void (*task)(int64_t, void*), void* context) { task(0, context); }

struct Tensors {
  std::vector<std::vector<char>> bytes;
  std::vector<NormEntry> entries;
  int64_t blocks = 0;

  void add(int64_t numel, Dtype dtype, std::mt19937& random) {
    std::normal_distribution<double> normal;
    const int64_t start = entries.empty() ? 0 : entries.back().start + entries.back().numel;
    std::vector<char>& tensor = bytes.emplace_back(numel * item_bytes(dtype));
    for (int64_t i = 0; i < numel; ++i) {
      store(tensor.data() + i * item_bytes(dtype), dtype, normal(random));
    }
    entries.push_back({tensor.data(), start, numel, blocks, dtype});
    blocks += norm_blocks(numel);
  }
};

float on_the_device(Norm kind, const Tensors& tensors) {
  std::vector<double> memory(cuda::norm_memory(tensors.blocks), -1);
  float total = -1;
  const cuda::NormRequest request{kind, tensors.entries.data(),
                                  static_cast<int64_t>(tensors.entries.size()), memory.data(),
                                  &total};
  const auto args = std::make_unique<cuda::NormArguments>();
  for (int64_t next = 0; next < request.count;) {
    next = cuda::pack_norm(request, next, *args);
    const int64_t threads = args->blocks * kNormLanes + 5;  // some have nothing to do
    for (int64_t thread = 0; thread < threads; ++thread) cuda::norm_lanes(*args, thread);
  }
  double* sums = memory.data() + tensors.blocks * kNormLanes;
  double* columns = sums + tensors.blocks;
  for (int64_t thread = 0; thread < tensors.blocks + 5; ++thread) {
    cuda::norm_blocks_of(kind, memory.data(), sums, tensors.blocks, thread);
  }
  for (int thread = 0; thread < kNormColumns; ++thread) {
    cuda::norm_columns(kind, sums, columns, tensors.blocks, thread);
  }
  cuda::norm_total(kind, columns, &total);
  return total;
}

float on_the_cpu(Norm kind, const Tensors& tensors) {
  std::vector<double> results(tensors.blocks);
  const double all =
      cpu::norm(kind, 1, tensors.entries.data(), static_cast<int64_t>(tensors.entries.size()),
                results.data(), serial);
  return static_cast<float>(kind == Norm::kSquares ? std::sqrt(all) : all);
}

void test_the_cpus_bits() {
  std::mt19937 random(3);
  Tensors tensors;
  constexpr Dtype kDtype[] = {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16};
  for (const int64_t numel : {1, 15, 16, 17, 4095, 4096, 4097, 2'000'003}) {
    for (const Dtype dtype : kDtype) tensors.add(numel, dtype, random);
  }
  for (int i = 0; i < 3000; ++i) tensors.add(1 + i % 70, kDtype[i % 3], random);  // three launches
  for (int kind = 0; kind < kNorms; ++kind) {
    const auto norm = static_cast<Norm>(kind);
    CHECK(on_the_device(norm, tensors) == on_the_cpu(norm, tensors));
  }
  store(tensors.bytes[4].data(), kDtype[1], NAN);
  for (int kind = 0; kind < kNorms; ++kind) {
    CHECK(std::isnan(on_the_device(static_cast<Norm>(kind), tensors)));
  }
}

}  // namespace

int main() { test_the_cpus_bits(); }
