// The kernels of one rule, as nvcc compiles them from the bodies.
#pragma once

#include "cuda/kernel.h"
#include "cuda/mixed.cuh"
#include "cuda/prepare.cuh"
#include "cuda/sweep.cuh"

namespace fusedopt::cuda {

template <typename Rule, Dtype kDtype>
__global__ void __launch_bounds__(kBlockThreads,
                                  kResidentBlocks<sizeof(typename Element<kDtype>::Type)>)
    sweep(const __grid_constant__ SweepArguments args) {
  sweep_chunk<Rule, kDtype>(args, blockIdx.x, threadIdx.x);
}

template <typename Rule>
__global__ void __launch_bounds__(kBlockThreads, kResidentBlocks<sizeof(float)>)
    sweep_mixed(const __grid_constant__ SweepArguments args) {
  mixed_chunk<Rule>(args, blockIdx.x, threadIdx.x);
}

template <typename Rule>
__global__ void __launch_bounds__(kBlockThreads)
    prepare(const __grid_constant__ PrepareArguments args) {
  prepare_rule<Rule>(args, blockIdx.x * kBlockThreads + threadIdx.x);
}

// From one rule, for float and for double. (Concrete types, for the reason in csrc/README.md.)
template <typename Float, typename Double>
Kernel make_kernel(const char* name) {
  static_assert(Float::kStates <= kMaxStates && Double::kStates == Float::kStates);
  return {name,
          Float::kStates,
          kScalarsOf<typename Float::Options>,
          sizeof(typename Float::Options) / sizeof(double),
          {sizeof(Float), sizeof(Double)},
          {prepare<Float>, prepare<Double>},
          {sweep<Float, Dtype::kFloat32>, sweep<Double, Dtype::kFloat64>,
           sweep<Float, Dtype::kBFloat16>, sweep<Float, Dtype::kFloat16>},
          sweep_mixed<Float>};
}

}  // namespace fusedopt::cuda
