// From tensors to the norm's kernel.
#include "torch/norm.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/elements.h"
#include "engine/tuning.h"
#include "torch/operand.h"
#include "torch/parallel.h"

namespace fusedopt {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename T>
double coefficient(double max_norm, double total) {
  // torch divides a Python number by a tensor in this way.
  const T reciprocal = T(1) / (T(total) + T(kNormEps));
  const T product = reciprocal * T(max_norm);
  return product > T(1) ? T(1) : product;  // a NaN stays one
}

}  // namespace

bool NormOf::has_order(double order) {
  return order == 2 || order == 1 || order == 0 || order == kInfinity || order == -kInfinity;
}

void NormOf::add(const c10::TensorImpl& tensor, Dtype dtype) {
  in_double_ = in_double_ || dtype == Dtype::kFloat64;
  const int64_t numel = tensor.numel();
  if (numel == 0) {
    any_empty_ = true;
    return;
  }
  const char* at = address_of(tensor);
  if (!tensor.is_non_overlapping_and_dense()) {
    const at::AutoDispatchBelowADInplaceOrView below;  // noting a graph may run Python code
    copies_.push_back(tensor_of(&tensor).contiguous());
    at = address_of(*copies_.back().unsafeGetTensorImpl());
  }
  entries_.push_back({at, elements_, numel, blocks_, dtype});
  elements_ += numel;
  blocks_ += norm_blocks(numel);
}

double NormOf::run(Norm kind, double scale) {
  results_.resize(blocks_);
  return cpu::norm(kind, scale, entries_.data(), static_cast<int64_t>(entries_.size()),
                   results_.data(), parallel);
}

double NormOf::partial(double order) {
  if (order == 2) return run(Norm::kSquares, 1);
  if (order == 1) return run(Norm::kMagnitudes, 1);
  if (order == kInfinity) return run(Norm::kLargest, 1);
  if (order == -kInfinity) return run(Norm::kSmallest, 1);
  run(Norm::kLargest, 1);  // 0: torch counts the tensors that have another element than 0
  double any = 0;
  for (const NormEntry& entry : entries_) {
    const double* first = results_.data() + entry.blocks;
    any += std::any_of(first, first + norm_blocks(entry.numel),
                       [](double largest) { return largest != 0; });
  }
  return any;
}

double NormOf::total_in_double(double order) {
  const double all = partial(order);
  if (order != 2) return all;
  // Squares of float64 may be too large or too small for double.
  constexpr double kTiny = 0x1p-900;
  constexpr double kScale = 0x1p600;
  if (in_double_ && all == kInfinity) {
    return std::sqrt(run(Norm::kSquares, 1 / kScale)) * kScale;
  }
  if (in_double_ && all < kTiny) return std::sqrt(run(Norm::kSquares, kScale)) / kScale;
  return std::sqrt(all);
}

double NormOf::total(double order, double scale) {
  const double all = total_in_double(order) / scale;
  // float32 may have no room for the norm of finite elements.
  in_double_ = in_double_ || (std::isfinite(all) && all > kLargest[0]);
  return in_double_ ? all : static_cast<float>(all);
}

double clip_coefficient(double max_norm, double total, bool in_double) {
  return in_double ? coefficient<double>(max_norm, total) : coefficient<float>(max_norm, total);
}

py::object tensor_with(double norm, bool in_double) {
  at::Tensor tensor = at::detail::empty_cpu({}, in_double ? at::kDouble : at::kFloat);
  store(static_cast<char*>(tensor.mutable_data_ptr()),
        in_double ? Dtype::kFloat64 : Dtype::kFloat32, norm);
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(tensor)));
}

std::optional<GradNorm> grad_norm(const Reading& reading) {
  if (reading.scaler.scale_at != nullptr) return {};
  NormOf norm;
  norm.reserve(reading.ready.size());
  for (const int slot : reading.ready) {
    const Work& work = reading.works()[slot];
    const c10::TensorImpl& grad = *work.operands[kGrad].tensor;
    Dtype dtype;
    if (work.device != kHost || work.cut != 0 || !to_dtype(grad, dtype)) return {};
    norm.add(grad, dtype);
  }
  return GradNorm{norm.total(2, reading.scaler.scale), norm.in_double()};
}

}  // namespace fusedopt
