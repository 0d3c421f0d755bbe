// The norm of many tensors in the host's memory. Reads them, and writes nothing.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <vector>

#include "cpu/norm.h"
#include "torch/reading.h"

namespace fusedopt {

// What torch adds to a norm before it divides by it.
inline constexpr double kNormEps = 1e-6;

class NormOf {
 public:
  // Orders of norms that are computed here: 2, 1, 0, inf and -inf.
  static bool has_order(double order);

  void reserve(size_t tensors) { entries_.reserve(tensors); }

  // `tensor` has to live, and to stay as it is, until total() has been called.
  void add(const c10::TensorImpl& tensor, Dtype dtype);

  int64_t elements() const { return elements_; }
  bool any_empty() const { return any_empty_; }

  // As torch.nn.utils.get_total_norm, of tensors divided by `scale`. In float64 where a tensor is,
  // or where float32 has no room for the norm, and else rounded to float32.
  double total(double order, double scale = 1);
  bool in_double() const { return in_double_; }

  // The sum of squares, or whatever else can be added or compared before total() takes its root.
  double partial(double order);

 private:
  double total_in_double(double order);
  double run(Norm kind, double scale);

  std::vector<NormEntry> entries_;
  std::vector<double> results_;
  std::vector<at::Tensor> copies_;  // of tensors whose elements don't lie side by side
  int64_t elements_ = 0;
  int64_t blocks_ = 0;
  bool in_double_ = false;
  bool any_empty_ = false;
};

// What gradients are multiplied by, as torch.nn.utils.clip_grads_with_norm_ computes it: in
// float32, or in float64.
double clip_coefficient(double max_norm, double total, bool in_double);

// The norm of tensors on one device beside the host, where the result is, too. Undefined: torch
// computes the norm.
at::Tensor norm_on_device(const std::vector<at::Tensor>& tensors, double order);

// A norm as a tensor: float32, or float64.
py::object tensor_with(double norm, bool in_double);

struct GradNorm {
  double value;
  bool in_double;
};

// The norm of the gradients that a step is about to see, without a GradScaler's factor. No value
// where some are on a device or pieces of a DTensor.
std::optional<GradNorm> grad_norm(const Reading& reading);

}  // namespace fusedopt
