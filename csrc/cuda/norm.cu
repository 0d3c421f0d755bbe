// The norm's kernels and their launches.
#include <cuda_runtime_api.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "cuda/norm.cuh"

namespace fusedopt::cuda {

namespace {

__global__ void __launch_bounds__(kNormThreads)
    lanes_kernel(const __grid_constant__ NormArguments args) {
  norm_lanes(args, int64_t{blockIdx.x} * kNormThreads + threadIdx.x);
}

__global__ void __launch_bounds__(kNormThreads)
    blocks_kernel(Norm kind, double* lanes, double* sums, int64_t blocks) {
  norm_blocks_of(kind, lanes, sums, blocks, int64_t{blockIdx.x} * kNormThreads + threadIdx.x);
}

__global__ void __launch_bounds__(kNormColumns)
    columns_kernel(Norm kind, const double* sums, double* columns, int64_t blocks) {
  norm_columns(kind, sums, columns, blocks, static_cast<int>(threadIdx.x));
}

__global__ void total_kernel(Norm kind, double* columns, float* total) {
  norm_total(kind, columns, total);
}

uint32_t grid(int64_t threads) {
  return static_cast<uint32_t>((threads + kNormThreads - 1) / kNormThreads);
}

void check(int device) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  throw std::runtime_error("fusedopt: the CUDA kernels of norms couldn't be launched on device " +
                           std::to_string(device) + ": " + cudaGetErrorString(error));
}

}  // namespace

void norm(const NormRequest& request, int device, void* stream) {
  auto* queue = static_cast<cudaStream_t>(stream);
  const auto args = std::make_unique<NormArguments>();
  const NormEntry& last = request.entries[request.count - 1];
  const int64_t blocks = last.blocks + norm_blocks(last.numel);
  double* lanes = request.memory;
  double* sums = lanes + blocks * kNormLanes;
  double* columns = sums + blocks;
  for (int64_t next = 0; next < request.count;) {
    next = pack_norm(request, next, *args);
    lanes_kernel<<<grid(args->blocks * kNormLanes), kNormThreads, 0, queue>>>(*args);
  }
  blocks_kernel<<<grid(blocks), kNormThreads, 0, queue>>>(request.kind, lanes, sums, blocks);
  columns_kernel<<<1, kNormColumns, 0, queue>>>(request.kind, sums, columns, blocks);
  total_kernel<<<1, 1, 0, queue>>>(request.kind, columns, request.total);
  check(device);
}

}  // namespace fusedopt::cuda
