// Launches the kernels through the CUDA runtime, which is linked statically, so that the extension
// loads where there is no CUDA.
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>

#include "cuda/kernel.h"
#include "cuda/pack.h"
#include "engine/tuning.h"

namespace fusedopt::cuda {

namespace {

constexpr const char* kDtypeNames[] = {"float32", "float64", "bfloat16", "float16"};

struct Target {
  const Kernel& kernel;
  Dtype dtype;
  int device;
  cudaStream_t stream;
};

void check(cudaError_t error, const Target& target) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it has been reported
  const std::string message = std::string("fusedopt: the CUDA kernel ") + target.kernel.name +
                              " (" + kDtypeNames[static_cast<int>(target.dtype)] +
                              ") couldn't be launched on device " + std::to_string(target.device) +
                              ": " + cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation) throw OutOfMemory(message);
  throw std::runtime_error(message);
}

int multiprocessors_of(const Target& target) {
  static std::array<std::atomic<int>, 64> known{};
  const auto index = static_cast<size_t>(target.device);
  if (index < known.size() && known[index] != 0) return known[index];
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, target.device), target);
  if (index < known.size()) known[index] = count;
  return count;
}

template <typename Arguments>
void launch(void (*kernel)(Arguments), uint32_t blocks, Arguments& args, const Target& target) {
  void* parameters[] = {&args};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(kBlockThreads),
                         parameters, 0, target.stream),
        target);
}

}  // namespace

void run(const Kernel& kernel, Dtype dtype, const Table& table, const Scalars& scalars, int device,
         void* stream) {
  const Target target{kernel, dtype, device, static_cast<cudaStream_t>(stream)};
  if (scalars.rules != nullptr) {
    PreparePacker packer(kernel, dtype, scalars);
    PrepareArguments args;
    while (const uint32_t blocks = packer.next(args)) {
      launch(kernel.prepare[Kernel::compute(dtype)], blocks, args, target);
    }
  }
  const auto sweep =
      table.formats != nullptr ? kernel.mixed : kernel.sweep[static_cast<int>(dtype)];
  SweepPacker packer(kernel, dtype, table, scalars, multiprocessors_of(target));
  SweepArguments args;
  while (const uint32_t blocks = packer.next(args)) {
    launch(sweep, blocks, args, target);
  }
}

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  if (error == cudaSuccess) return status != cudaStreamCaptureStatusNone;
  cudaGetLastError();
  if (error == cudaErrorStreamCaptureImplicit) return true;  // the legacy stream, while another is
  throw std::runtime_error(std::string("fusedopt: CUDA says: ") + cudaGetErrorString(error));
}

std::string why_not(const Kernel& kernel, Dtype dtype, bool mixed) {
  cudaFuncAttributes attributes;
  const auto chosen = mixed ? kernel.mixed : kernel.sweep[static_cast<int>(dtype)];
  const auto* sweep = reinterpret_cast<const void*>(chosen);
  const cudaError_t error = cudaFuncGetAttributes(&attributes, sweep);
  if (error == cudaSuccess) return "";
  cudaGetLastError();
  const std::string reason = cudaGetErrorString(error);
  if (error != cudaErrorMemoryAllocation) return reason;
  throw OutOfMemory(std::string("fusedopt: the CUDA kernel ") + kernel.name + ": " + reason);
}

}  // namespace fusedopt::cuda
