// The devices beside the host that our kernels run on: CUDA's, or a test's stand-in for them.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/DispatchKeySet.h>

#include <string>

#include "cuda/kernel.h"
#include "cuda/norm.h"
#include "engine/table.h"
#include "torch/optimizers.h"

namespace fusedopt {

struct Accelerator {
  c10::DeviceType type;
  c10::DispatchKeySet plain;  // the keys of a plain, dense tensor there
  // All functions are for the current device and one of the device's streams.
  // Why a kernel can't run there; `mixed`: on operands in several formats. Empty: it can.
  std::string (*why_not)(const Variant& variant, Dtype dtype, bool mixed, int device, void* stream);
  bool (*is_capturing)(void* stream);
  // As cuda::run.
  void (*run)(const Variant& variant, Dtype dtype, const Table& table, const cuda::Scalars& scalars,
              int device, void* stream);
  // As cuda::norm; null: this build has none.
  void (*norm)(const cuda::NormRequest& request, int device, void* stream);
};

// CUDA's, unless a test has put another in its place.
extern const Accelerator* accelerator;
void set_accelerator(const Accelerator* other);  // null: CUDA's

}  // namespace fusedopt
