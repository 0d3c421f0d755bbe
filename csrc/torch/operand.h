// Questions to a tensor that a kernel may be given, answered in a few instructions where all is as
// usual.
#pragma once

#include <c10/core/TensorImpl.h>

#include <string>

#include "engine/dtype.h"

namespace fusedopt {

// A dense tensor in this process' memory and nothing else: no subclass with a dispatch of its own,
// no lazy negation or conjugation, no functorch or functionalization wrapper.
inline uint64_t plain_keys() {
  return c10::DispatchKeySet({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                              c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::AutocastCPU})
      .raw_repr();
}
inline bool is_plain_cpu(const c10::TensorImpl& tensor) {
  return (tensor.key_set().raw_repr() & ~plain_keys()) == 0;
}

// The address of a plain tensor's first element; null where nothing is allocated, as sharding
// frameworks leave it. (TensorImpl::data() makes two virtual calls to learn the same.)
inline const char* address_of(const c10::TensorImpl& tensor) {
  const auto* base =
      tensor.unsafe_storage() ? static_cast<const char*>(tensor.unsafe_storage().data()) : nullptr;
  return base == nullptr ? nullptr : base + tensor.storage_offset() * tensor.itemsize();
}

// The same for writing: memory that is shared until somebody writes to it becomes the tensor's own.
inline char* writable_address_of(c10::TensorImpl& tensor) {
  return static_cast<char*>(tensor.unsafe_storage().mutable_data()) +
         tensor.storage_offset() * tensor.itemsize();
}

inline bool is_allocated(const c10::TensorImpl& tensor) {
  return tensor.unsafe_storage().data() != nullptr || tensor.numel() == 0;
}

// ArrayRef's == calls memcmp, which costs more than the one to four numbers compared.
inline bool same_sizes(const c10::TensorImpl& a, const c10::TensorImpl& b) {
  const auto first = a.sizes();
  const auto second = b.sizes();
  bool same = first.size() == second.size();
  for (size_t d = 0; same && d < first.size(); ++d) same = first[d] == second[d];
  return same;
}

// The same elements at the same offsets: equal strides, wherever a dimension has more than one
// element. The sizes are equal.
inline bool same_strides(const c10::TensorImpl& a, const c10::TensorImpl& b) {
  const auto sizes = a.sizes();
  const auto first = a.strides();
  const auto second = b.strides();
  bool same = true;
  for (size_t d = 0; same && d < sizes.size(); ++d) same = first[d] == second[d] || sizes[d] == 1;
  return same;
}

// Can the tensor stand beside this parameter without further questions? Its address, if so.
inline bool fits(const c10::TensorImpl& tensor, const c10::TensorImpl& param,
                 const char** address) {
  *address = address_of(tensor);
  // All the keys: an inference tensor lacks some.
  return tensor.key_set().raw_repr() == plain_keys() && tensor.dtype() == param.dtype() &&
         same_sizes(tensor, param) && same_strides(tensor, param) &&
         (*address != nullptr || param.numel() == 0);
}

bool to_dtype(const c10::TensorImpl& tensor, Dtype& dtype);

// Does more than one element refer to one place, by a stride of 0?
bool is_expanded(const c10::TensorImpl& tensor);

// May it, by any strides?
bool may_overlap_itself(const c10::TensorImpl& tensor);

// Would counting up its version fail?
bool is_frozen_inference(const c10::TensorImpl& tensor);

// Shape, dtype and device, for a message.
std::string describe(const c10::TensorImpl& tensor);

}  // namespace fusedopt
