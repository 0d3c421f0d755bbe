// Clipping: reads gradients, computes their norm, and writes them.
#include "torch/clip.h"

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "cpu/passes.h"
#include "engine/elements.h"
#include "engine/tuning.h"
#include "torch/modes.h"
#include "torch/norm.h"
#include "torch/python.h"
#include "torch/tensors.h"

namespace fusedopt {

namespace {

// What other threads may change of a tensor while the interpreter's lock is released.
struct Before {
  c10::Storage storage;
  const char* address;
  int64_t numel;
  caffe2::TypeMeta dtype;

  explicit Before(const at::Tensor& tensor)
      : storage(tensor.storage()),
        address(address_of(*tensor.unsafeGetTensorImpl())),
        numel(tensor.numel()),
        dtype(tensor.dtype()) {}

  bool is(const at::Tensor& tensor) const {
    const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
    return impl.is_non_overlapping_and_dense() && impl.dtype() == dtype && impl.numel() == numel &&
           address_of(impl) == address;
  }
};

// The norm without the interpreter's lock. No value, if a tensor isn't what it was after that.
std::optional<double> without_lock(const std::vector<Covered>& all, NormOf& norm, double order) {
  std::vector<Before> before;
  for (const Covered& item : all) before.emplace_back(item.tensor);
  double value;
  {
    const py::gil_scoped_release release;
    value = norm.total(order);
  }
  for (size_t i = 0; i < all.size(); ++i) {
    if (!before[i].is(all[i].tensor)) return {};
  }
  return value;
}

NormOf list_of(const std::vector<Covered>& all) {
  NormOf norm;
  norm.reserve(all.size());
  for (const Covered& item : all) norm.add(*item.tensor.unsafeGetTensorImpl(), item.dtype);
  return norm;
}

// No value where torch computes the norm, or raises an error.
std::optional<GradNorm> norm_of(std::vector<Covered>& all, double order) {
  NormOf norm = list_of(all);
  if (all.empty() || !NormOf::has_order(order)) return {};
  if (norm.any_empty() && std::isinf(order)) return {};
  const auto is_dense = [](const Covered& item) {
    return item.tensor.is_non_overlapping_and_dense();
  };
  if (norm.elements() >= kReleaseElements && std::all_of(all.begin(), all.end(), is_dense)) {
    if (const auto value = without_lock(all, norm, order))
      return GradNorm{*value, norm.in_double()};
    if (!read_again(all)) return {};
    norm = list_of(all);
  }
  const double value = norm.total(order);
  return GradNorm{value, norm.in_double()};
}

// Writes gradients in place, and counts the versions.
void write(const std::vector<Covered>& grads, const cpu::Kernel& kernel, const double* options) {
  std::vector<Pair> pairs;
  pairs.reserve(grads.size());
  for (const Covered& grad : grads) pairs.push_back({&grad, &grad});
  unshare_targets(pairs);
  sweep_pairs(kernel, options, pairs);
  count_versions(pairs);
}

// torch counts versions where nothing changes, too.
void scale(const std::vector<Covered>& grads, double factor) {
  if (factor != 1) return write(grads, cpu::kScale, &factor);
  for (const Covered& grad : grads) count_version(operand_of(*grad.tensor.unsafeGetTensorImpl()));
}

// The norm of tensors on a device. None, too, where the host has to wait for the device.
py::object device_norm(const py::object& list, double order, bool error_if_nonfinite) {
  if (error_if_nonfinite || why_transformed() != nullptr) return py::none();
  std::vector<at::Tensor> tensors;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list.ptr()); ++i) {
    PyObject* object = PySequence_Fast_GET_ITEM(list.ptr(), i);
    if (!is_exact(object)) return py::none();
    tensors.push_back(THPVariable_Unpack(object));
  }
  at::Tensor total = norm_on_device(tensors, order);
  if (!total.defined()) return py::none();
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(total)));
}

}  // namespace

void refuse_nonfinite(double order) {
  const auto text = py::str(
                        "The total norm of order {} for gradients from `parameters` is "
                        "non-finite, so it cannot be clipped. To disable this error and scale "
                        "the gradients by the non-finite norm anyway, set "
                        "`error_if_nonfinite=False`")
                        .format(order);
  PyErr_SetObject(PyExc_RuntimeError, text.ptr());
  throw py::error_already_set();
}

py::object get_total_norm(const py::object& tensors, double order, bool error_if_nonfinite) {
  std::vector<Covered> all;
  const py::object list = listed(tensors);
  if (!read_tensors(list, all)) return device_norm(list, order, error_if_nonfinite);
  const auto total = norm_of(all, order);
  if (!total) return py::none();
  if (error_if_nonfinite && !std::isfinite(total->value)) refuse_nonfinite(order);
  return tensor_with(total->value, total->in_double);
}

py::object norm_part(const py::object& tensors, double order) {
  std::vector<Covered> all;
  if (!read_tensors(listed(tensors), all)) return py::none();
  return py::float_(list_of(all).partial(order));
}

py::object clip_grad_norm(const py::object& params, double max_norm, double order,
                          bool error_if_nonfinite) {
  std::vector<Covered> grads;
  if (!read_gradients(listed(params), grads)) return py::none();
  const auto total = norm_of(grads, order);
  if (!total || !may_write(grads)) return py::none();
  if (error_if_nonfinite && !std::isfinite(total->value)) refuse_nonfinite(order);
  scale(grads, clip_coefficient(max_norm, total->value, total->in_double));
  return tensor_with(total->value, total->in_double);
}

py::object clip_grads_with_norm(const py::object& params, double max_norm, const py::object& norm) {
  std::vector<Covered> total;
  std::vector<Covered> grads;
  if (!is_exact(norm.ptr()) || !read_tensors(py::make_tuple(norm), total)) return py::none();
  const bool in_double = total[0].dtype == Dtype::kFloat64;
  const c10::TensorImpl& tensor = *total[0].tensor.unsafeGetTensorImpl();
  if (tensor.dim() != 0 || (!in_double && total[0].dtype != Dtype::kFloat32)) return py::none();
  if (!read_gradients(listed(params), grads) || !may_write(grads)) return py::none();
  const double value = load(address_of(tensor), total[0].dtype);
  scale(grads, clip_coefficient(max_norm, value, in_double));
  return py::bool_(true);
}

py::object clip_grad_value(const py::object& params, double clip_value) {
  std::vector<Covered> grads;
  if (!read_gradients(listed(params), grads) || !may_write(grads)) return py::none();
  const auto has_room = [&](const Covered& grad) {
    return std::isinf(clip_value) || !(std::fabs(clip_value) > kLargest[int(grad.dtype)]);
  };
  if (grads.empty() || !std::all_of(grads.begin(), grads.end(), has_room)) return py::none();
  const double options[] = {-clip_value, clip_value};
  write(grads, cpu::kClamp, options);
  return py::bool_(true);
}

}  // namespace fusedopt
