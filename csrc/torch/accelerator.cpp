// CUDA as the accelerator, if this build has CUDA kernels. Its functions take memory of a device.
#include "torch/accelerator.h"

#include <ATen/ops/empty.h>

#include <cstdlib>
#include <cstring>

#include "cuda/self_test.h"
#include "torch/operand.h"

namespace fusedopt {

namespace {

#if defined(FUSEDOPT_WITH_CUDA)

std::string why_not(const Variant& variant, Dtype dtype, bool mixed, int device, void* stream) {
  static const char* const asked_for = std::getenv("FUSEDOPT_CUDA_KERNELS");
  if (asked_for != nullptr && std::strcmp(asked_for, "0") == 0) return "FUSEDOPT_CUDA_KERNELS=0";
  const c10::Device where(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
  const at::Tensor memory = at::empty({cuda::self_test_bytes(*variant.cuda)},
                                      at::TensorOptions().dtype(at::kByte).device(where));
  return cuda::self_test(*variant.cuda, *variant.cpu, dtype, mixed, memory.data_ptr(), device,
                         stream);
}

void run(const Variant& variant, Dtype dtype, const Table& table, const cuda::Scalars& scalars,
         int device, void* stream) {
  cuda::run(*variant.cuda, dtype, table, scalars, device, stream);
}

#else

std::string why_not(const Variant&, Dtype, bool, int, void*) {
  return "this build has no CUDA kernels";
}
void run(const Variant&, Dtype, const Table&, const cuda::Scalars&, int, void*) {}

#endif

const Accelerator kCuda = {
    c10::kCUDA,
    c10::DispatchKeySet({c10::DispatchKey::CUDA, c10::DispatchKey::AutogradCUDA,
                         c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::AutocastCUDA}),
    why_not,
#if defined(FUSEDOPT_WITH_CUDA)
    cuda::is_capturing,
    run,
    cuda::norm,
#else
    [](void*) { return false; },
    run,
    nullptr,
#endif
};

}  // namespace

const Accelerator* accelerator = &kCuda;

void set_accelerator(const Accelerator* other) {
  accelerator = other == nullptr ? &kCuda : other;
  deleters.device = nullptr;
}

}  // namespace fusedopt
