// The bodies of the norm's kernels, which are plain functions of a thread's number, and what their
// launches get. Four launches: lanes of blocks, blocks, columns of blocks, the total.
#pragma once

#include <cstdint>

#include "cuda/arguments.h"
#include "cuda/norm.h"
#include "cuda/sweep.cuh"

namespace fusedopt::cuda {

inline constexpr int kNormThreads = 256;

struct NormTensor {
  const char* at;
  int64_t numel;
  uint32_t first;  // blocks of the tensors before it in this launch
  Dtype dtype;
};

inline constexpr int kNormTensors =
    (kArgumentBytes - 4 * static_cast<int>(sizeof(int64_t))) / static_cast<int>(sizeof(NormTensor));

struct NormArguments {
  double* lanes;  // of the launch's first block
  Norm kind;
  int32_t count;  // tensors
  int64_t blocks;
  NormTensor tensors[kNormTensors];
};
static_assert(sizeof(NormArguments) <= kArgumentBytes);

// Fills the next launch's arguments from entry `next` on, and returns the entry after them.
inline int64_t pack_norm(const NormRequest& request, int64_t next, NormArguments& args) {
  const int64_t first = request.entries[next].blocks;
  args.lanes = request.memory + first * kNormLanes;
  args.kind = request.kind;
  args.count = 0;
  args.blocks = 0;
  for (; next < request.count && args.count < kNormTensors; ++next) {
    const NormEntry& entry = request.entries[next];
    args.tensors[args.count++] = {entry.at, entry.numel, static_cast<uint32_t>(args.blocks),
                                  entry.dtype};
    args.blocks += norm_blocks(entry.numel);
  }
  return next;
}

FUSEDOPT_HD const NormTensor& find_tensor(const NormArguments& args, int64_t block) {
  int low = 0;
  int high = args.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (args.tensors[middle].first <= block ? low : high) = middle;
  }
  return args.tensors[low];
}

template <Dtype kDtype>
FUSEDOPT_HD double norm_lane(Norm kind, const char* at, int64_t begin, int64_t lane, int64_t n) {
  const auto* elements = reinterpret_cast<const typename Element<kDtype>::Type*>(at) + begin;
  double sum = norm_of_none(kind);
#if defined(__CUDACC__)
#pragma unroll 8  // so many loads are on their way
#endif
  for (int64_t i = lane; i < n; i += kNormLanes) {
    const auto x = static_cast<double>(Storage<kDtype>::load(elements[i]));
    sum = add_norms(kind, sum, norm_of_one(kind, x));
  }
  return sum;
}

// One lane of a block. `thread` is counted in the whole grid.
FUSEDOPT_HD void norm_lanes(const NormArguments& args, int64_t thread) {
  const int64_t block = thread / kNormLanes;
  if (block >= args.blocks) return;
  const NormTensor& tensor = find_tensor(args, block);
  const int64_t begin = (block - tensor.first) * kNormBlock;
  const int64_t n = tensor.numel - begin < kNormBlock ? tensor.numel - begin : kNormBlock;
  const int64_t lane = thread % kNormLanes;
  double& sum = args.lanes[thread];
  if (tensor.dtype == Dtype::kFloat32) {
    sum = norm_lane<Dtype::kFloat32>(args.kind, tensor.at, begin, lane, n);
  } else if (tensor.dtype == Dtype::kBFloat16) {
    sum = norm_lane<Dtype::kBFloat16>(args.kind, tensor.at, begin, lane, n);
  } else {
    sum = norm_lane<Dtype::kFloat16>(args.kind, tensor.at, begin, lane, n);
  }
}

FUSEDOPT_HD void norm_blocks_of(Norm kind, double* lanes, double* sums, int64_t blocks,
                                int64_t thread) {
  if (thread < blocks) sums[thread] = reduce_norms(kind, lanes + thread * kNormLanes, kNormLanes);
}

FUSEDOPT_HD void norm_columns(Norm kind, const double* sums, double* columns, int64_t blocks,
                              int thread) {
  double sum = norm_of_none(kind);
  for (int64_t i = thread; i < blocks; i += kNormColumns) sum = add_norms(kind, sum, sums[i]);
  columns[thread] = sum;
}

FUSEDOPT_HD void norm_total(Norm kind, double* columns, float* total) {
  const double all = absolute(reduce_norms(kind, columns, kNormColumns));
  *total = static_cast<float>(kind == Norm::kSquares ? square_root(all) : all);
}

}  // namespace fusedopt::cuda
