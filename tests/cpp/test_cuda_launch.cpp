// A launch that fails says which kernel failed and why. Where there are CUDA kernels, and no device
// that runs them.
#include <stdexcept>
#include <string>

#include "check.h"
#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "cuda/self_test.h"

int main() {
#if defined(FUSEDOPT_WITH_CUDA)
  using namespace fusedopt;
  const int device = 1000;  // no machine has so many
  TensorEntry tensor{};
  tensor.start = 0;
  tensor.numel = 1;
  tensor.layout = -1;
  const char rule[64] = {};
  const Table table{&tensor, 1, rule, nullptr, false, 1};
  std::string message;
  try {
    cuda::run(cuda::kAdagrad, Dtype::kBFloat16, table, {}, device, nullptr);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  CHECK(message.find("Adagrad (bfloat16)") != std::string::npos);
  CHECK(message.find("device 1000: ") != std::string::npos);
  const std::string reason = cuda::why_not(cuda::kAdagrad, Dtype::kBFloat16, false);
  if (reason.empty()) return 0;  // there is a GPU
  CHECK(message.find(reason) != std::string::npos);
  CHECK(cuda::self_test(cuda::kAdagrad, cpu::kAdagrad, Dtype::kBFloat16, false, nullptr, 0,
                        nullptr) == reason);
#endif
}
