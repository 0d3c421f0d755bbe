// Parameters on CUDA devices: which of them our kernels take, and launching these.
//
// No GPU has run this yet, so it is off unless FUSEDOPT_CUDA_KERNELS=1 asks for it. Not covered
// yet, and torch's: step counts and options on the device, graph capture.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <tuple>

#include "torch/plan.h"

namespace fusedopt {

#if defined(FUSEDOPT_WITH_CUDA)

namespace {

bool is_asked_for() {
  static const char* const value = std::getenv("FUSEDOPT_CUDA_KERNELS");
  return value != nullptr && std::strcmp(value, "1") == 0;
}

// Without a torch header of CUDA's, which a CPU-only torch lacks: as torch.compile's launchers do.
Device look_at(int index) {
  static PyObject* const current = PyObject_GetAttrString(
      PyImport_AddModule("torch._C"), "_cuda_getCurrentRawStream");  // kept for the process' life
  if (current == nullptr) throw py::error_already_set();
  const auto handle = py::handle(current)(index);
  auto* stream = reinterpret_cast<void*>(handle.cast<uintptr_t>());
  return {index, stream, cuda::is_capturing(index, stream)};
}

// Asked of each kernel once. The text stays where it is.
const std::string& cuda_reason(const cuda::Kernel& kernel, Dtype dtype, int device) {
  static std::map<std::tuple<const cuda::Kernel*, Dtype, int>, std::string> known;
  const auto key = std::make_tuple(&kernel, dtype, device);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  return known.emplace(key, cuda::why_not(kernel, dtype, device)).first->second;
}

}  // namespace

// Why torch's own step takes a parameter on a device, or null.
const char* Plan::check_device(const Group& group, const Work& work) {
  if (!is_asked_for()) return "our CUDA kernels are off (FUSEDOPT_CUDA_KERNELS=1 tries them)";
  if (group.fused) return "fused=True keeps step counts on the device";
  if (group.capturable) return "capturable=True";
  auto found = std::find_if(devices_.begin(), devices_.end(),
                            [&](const Device& device) { return device.index == work.device; });
  if (found == devices_.end()) found = devices_.insert(found, look_at(work.device));
  if (found->capturing) return "a CUDA graph is being captured";
  for (const Operand& operand : work.operands) {
    if (operand.tensor != nullptr && !cuda::is_aligned(operand.address, work.dtype)) {
      return "an address is no multiple of its element's size";
    }
  }
  const std::string& reason = cuda_reason(*group.variant.cuda, work.dtype, work.device);
  return reason.empty() ? nullptr : reason.c_str();
}

void Plan::launch(const Bucket& bucket, const Table& table) const {
  const auto device = std::find_if(devices_.begin(), devices_.end(),
                                   [&](const Device& d) { return d.index == bucket.device; });
  cuda::run(*bucket.variant.cuda, bucket.dtype, table, {}, device->index, device->stream);
}

#else

const char* Plan::check_device(const Group&, const Work&) {
  return "this build has no CUDA kernels";
}

void Plan::launch(const Bucket&, const Table&) const {}

#endif

}  // namespace fusedopt
