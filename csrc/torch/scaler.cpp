// What a GradScaler and clipping hand to a step: numbers, or tensors on a device, which are fetched
// where the host needs them. May wait for the device, and run Python code.
#include <string>

#include "torch/python.h"
#include "torch/satisfy.h"

namespace fusedopt {

void read_back(Scaler& scaler) {
  double found_inf = scaler.overflow;
  const auto fetch = [](const c10::TensorImpl*& at, double& number) {
    if (at != nullptr) number = tensor_of(at).item().toDouble();
    at = nullptr;
  };
  const py::gil_scoped_release release;
  fetch(scaler.scale_at, scaler.scale);
  fetch(scaler.found_inf_at, found_inf);
  fetch(scaler.clip_at, scaler.clip);
  fetch(scaler.clip_elsewhere, scaler.clip);
  scaler.overflow = found_inf != 0;
}

Scaler read_scaler(const py::object& grad_scale, const py::object& found_inf,
                   const py::object& clip) {
  Scaler scaler;
  const auto on_device = [&](const py::object& value, Dtype expected) -> const c10::TensorImpl* {
    if (!is_tensor(value.ptr())) return nullptr;
    const c10::TensorImpl& tensor = impl_of(value.ptr());
    Dtype dtype;
    if (!is_number_on_device(tensor, dtype) || dtype != expected) return nullptr;
    scaler.held.push_back(THPVariable_Unpack(value.ptr()));
    return &tensor;
  };
  scaler.clip_at = on_device(clip, Dtype::kFloat64);
  if (is_tensor(clip.ptr())) {
    if (scaler.clip_at == nullptr) {
      scaler.held.push_back(THPVariable_Unpack(clip.ptr()));
      scaler.clip_elsewhere = scaler.held.back().unsafeGetTensorImpl();
    }
  } else if (!clip.is_none()) {
    scaler.clip = to_number(clip.ptr(), [] { return std::string("max_grad_norm"); });
  }
  scaler.scaled = !grad_scale.is_none();
  scaler.scale_at = on_device(grad_scale, Dtype::kFloat32);
  scaler.found_inf_at = on_device(found_inf, Dtype::kFloat32);
  if (scaler.scaled && scaler.scale_at == nullptr) {
    scaler.scale = to_number(grad_scale.ptr(), [] { return std::string("grad_scale"); });
  }
  if (!found_inf.is_none() && scaler.found_inf_at == nullptr) {
    scaler.overflow = to_number(found_inf.ptr(), [] { return std::string("found_inf"); }) != 0;
  }
  return scaler;
}

}  // namespace fusedopt
