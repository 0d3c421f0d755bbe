// Where the elements of any tensor lie, strided, sparse or in pieces. Reads tensors only.
#pragma once

#include <ATen/SparseCsrTensorImpl.h>
#include <ATen/SparseTensorImpl.h>
#include <ATen/core/Tensor.h>

#include "torch/dtensor.h"
#include "torch/operand.h"
#include "torch/overlap.h"

namespace fusedopt {

inline bool is_compressed(c10::Layout layout) {
  return layout == c10::kSparseCsr || layout == c10::kSparseCsc || layout == c10::kSparseBsr ||
         layout == c10::kSparseBsc;
}

// Calls each(range) for all memory that a tensor's elements are in. False: nobody knows where they
// are. `object` is the tensor's Python object, if there is one.
template <typename Each>
bool for_each_memory(const c10::TensorImpl& tensor, PyObject* object, const Each& each) {
  if (object != nullptr && is_dtensor(object)) {
    const Piece piece = piece_of(object);
    return piece.local != nullptr && for_each_memory(*piece.local, nullptr, each);
  }
  const auto part = [&](const at::Tensor& of) {
    return for_each_memory(*of.unsafeGetTensorImpl(), nullptr, each);
  };
  if (tensor.key_set().has(c10::DispatchKey::Python)) return false;
  if (tensor.layout() == c10::kSparse) {
    const auto& sparse = static_cast<const at::SparseTensorImpl&>(tensor);
    return part(sparse.values()) && part(sparse.indices());
  }
  if (is_compressed(tensor.layout())) {
    const auto& sparse = static_cast<const at::SparseCsrTensorImpl&>(tensor);
    return part(sparse.values()) && part(sparse.compressed_indices()) &&
           part(sparse.plain_indices());
  }
  if (!tensor.has_storage()) return false;
  const auto* begin = static_cast<const char*>(tensor.unsafe_storage().data());
  if (begin == nullptr) return true;
  constexpr c10::DispatchKeySet kLazy({c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});
  const auto strided = plain_keys(tensor.device_type()) | kLazy;
  if (!is_plain(tensor, strided)) {
    each(Range{begin, begin + tensor.unsafe_storage().nbytes(), -1});
  } else if (tensor.numel() != 0) {
    each(range_of(tensor, -1));
  }
  return true;
}

}  // namespace fusedopt
