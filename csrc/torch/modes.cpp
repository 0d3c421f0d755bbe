// Asking torch's modes: reads what this thread has switched on.
#include "torch/modes.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/forward_grad.h>

#include "torch/python.h"

namespace fusedopt {

namespace {

const PyTypeObject* device_mode() {
  static PyObject* kept = nullptr;
  return reinterpret_cast<PyTypeObject*>(imported(kept, "torch.utils._device", "DeviceContext"));
}

}  // namespace

// Operators do something else inside torch.func's transforms, under modes, and where derivatives
// are carried forward. torch.device's mode is let pass, because it only concerns new tensors.
const char* why_transformed() {
  const auto keys = c10::impl::tls_local_dispatch_key_set().included_;
  if (keys.has(c10::DispatchKey::Python) || keys.has(c10::DispatchKey::Functionalize) ||
      keys.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
      keys.has(c10::DispatchKey::Tracer)) {
    return "a dispatch mode or a transform is active";
  }
  if (at::impl::torch_function_mode_enabled()) {
    using Modes = at::impl::PythonTorchFunctionTLS;
    for (int64_t i = 0; i < Modes::stack_len(); ++i) {
      const PyTypeObject* known = device_mode();
      const auto* mode = Modes::get_stack_at(i)->ptr(getPyInterpreter());
      if (Py_TYPE(mode) != known) return "a __torch_function__ mode is active";
    }
  }
  return torch::autograd::ForwardADLevel::try_get_by_idx(0) != nullptr ? "forward-mode AD is active"
                                                                       : nullptr;
}

}  // namespace fusedopt
