// Questions to a tensor that a kernel may be given, answered in a few instructions where all is as
// usual.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/impl/COW.h>

#include <cstring>
#include <string>

#include "engine/dtype.h"
#include "torch/accelerator.h"

namespace fusedopt {

// These functions are a few instructions each, and a step calls them for five tensors per
// parameter.
#define FUSEDOPT_INLINE inline __attribute__((always_inline))

inline constexpr int kHost = -1;  // where another device has its number

// One tensor of a parameter.
struct Operand {
  c10::TensorImpl* tensor;
  const char* address;  // of its first element
  c10::StorageImpl* storage;
  // Where the tensor's version is counted, borrowed as the other pointers are. Null for an
  // inference tensor, which counts no versions.
  void* version;
};

// A dense tensor in the host's or a device's memory and nothing else: no subclass with a dispatch
// of its own, no lazy negation or conjugation, no functorch or functionalization wrapper.
inline constexpr c10::DispatchKeySet kPlainKeys({c10::DispatchKey::CPU,
                                                 c10::DispatchKey::AutogradCPU,
                                                 c10::DispatchKey::ADInplaceOrView,
                                                 c10::DispatchKey::AutocastCPU});
inline bool is_plain(const c10::TensorImpl& tensor, c10::DispatchKeySet plain) {
  return (tensor.key_set().raw_repr() & ~plain.raw_repr()) == 0;
}
inline bool is_plain_cpu(const c10::TensorImpl& tensor) { return is_plain(tensor, kPlainKeys); }
inline c10::DispatchKeySet plain_keys(c10::DeviceType type) {
  return type == accelerator->type ? accelerator->plain : kPlainKeys;
}

// The address of a plain tensor's first element; null where nothing is allocated, as sharding
// frameworks leave it. (TensorImpl::data() makes two virtual calls to learn the same.)
FUSEDOPT_INLINE const char* address_of(const c10::TensorImpl& tensor) {
  const auto* base =
      tensor.unsafe_storage() ? static_cast<const char*>(tensor.unsafe_storage().data()) : nullptr;
  // Not TensorImpl::itemsize(), which g++ doesn't inline.
  return base == nullptr ? nullptr : base + tensor.storage_offset() * tensor.dtype().itemsize();
}

inline bool is_allocated(const c10::TensorImpl& tensor) {
  return tensor.numel() == 0 || address_of(tensor) != nullptr;
}

// ArrayRef's == calls memcmp, which costs more than the one to four numbers compared.
inline bool same_sizes(const c10::TensorImpl& a, const c10::TensorImpl& b) {
  const auto first = a.sizes();
  const auto second = b.sizes();
  bool same = first.size() == second.size();
  for (size_t d = 0; same && d < first.size(); ++d) same = first[d] == second[d];
  return same;
}

// Are the same elements at the same offsets? Strides must be equal wherever a dimension has more
// than one element. The sizes are equal.
inline bool same_strides(const c10::TensorImpl& a, const c10::TensorImpl& b) {
  const auto sizes = a.sizes();
  const auto first = a.strides();
  const auto second = b.strides();
  bool same = true;
  for (size_t d = 0; same && d < sizes.size(); ++d) same = first[d] == second[d] || sizes[d] == 1;
  return same;
}

// What a parameter's gradient and state are compared with.
struct Shape {
  Shape(const c10::TensorImpl& param, int on_device)
      : keys(on_device == kHost ? kPlainKeys : accelerator->plain),
        device(on_device),
        sizes(param.sizes()),
        strides(param.strides()),
        dtype(param.dtype()) {}

  c10::DispatchKeySet keys;
  int device;
  c10::IntArrayRef sizes;
  c10::IntArrayRef strides;
  caffe2::TypeMeta dtype;
};

// Can the tensor stand beside this parameter without further questions?
FUSEDOPT_INLINE bool fits(const c10::TensorImpl& tensor, const char* address, const Shape& shape) {
  // All the keys are compared, and first: an inference tensor lacks some, and a subclass answers
  // other questions in Python.
  if (tensor.key_set() != shape.keys || tensor.dtype() != shape.dtype || address == nullptr ||
      (shape.device != kHost && tensor.device().index() != shape.device)) {
    return false;
  }
  const auto sizes = tensor.sizes();
  if (sizes.size() != shape.sizes.size()) return false;
  const int64_t* strides = tensor.strides().data();
  int64_t different = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    different |= (sizes[d] ^ shape.sizes[d]) | (strides[d] ^ shape.strides[d]);
  }
  return different == 0;
}

FUSEDOPT_INLINE void* version_counter_of(const c10::TensorImpl& tensor) {
  void* counter;
  static_assert(sizeof counter == sizeof tensor.version_counter());
  memcpy(&counter, &tensor.version_counter(), sizeof counter);
  return counter;
}

FUSEDOPT_INLINE Operand operand_of(c10::TensorImpl& tensor) {
  return {&tensor, address_of(tensor), tensor.unsafe_storage().unsafeGetStorageImpl(),
          version_counter_of(tensor)};
}

// One float32 or float64 in plain memory of the host.
FUSEDOPT_INLINE bool is_usual_number(const c10::TensorImpl& tensor) {
  return tensor.key_set() == kPlainKeys && tensor.numel() == 1 &&
         (tensor.dtype() == caffe2::TypeMeta::Make<float>() ||
          tensor.dtype() == caffe2::TypeMeta::Make<double>());
}

// What frees the memory that torch's allocators of the host and of the accelerator make.
struct Deleters {
  c10::DeleterFnPtr host;
  c10::DeleterFnPtr device;
};
extern Deleters deleters;

// Does the memory belong to this storage alone? It doesn't where storages share the memory until
// somebody writes, or where the memory came from elsewhere: from NumPy, a file, another process.
FUSEDOPT_INLINE bool owns_memory(const Operand& operand) {
  const auto deleter = operand.storage->_mutable_data_ptr_no_checks().get_deleter();
  return deleter == deleters.host || (deleter == deleters.device && deleter != nullptr);
}

// Is the memory shared until somebody writes to it?
inline bool is_lazily_copied(const Operand& operand) {
  return c10::impl::cow::is_cow_data_ptr(operand.storage->data_ptr());
}

// Counts up the version of a tensor that is about to be written, by torch's own bump of a borrowed
// VariableVersion: asking the tensor for the version would fetch the tensor's memory again.
FUSEDOPT_INLINE void count_version(const Operand& operand) {
  if (operand.version == nullptr) return;
  alignas(c10::VariableVersion) char borrowed[sizeof(c10::VariableVersion)];
  memcpy(borrowed, &operand.version, sizeof borrowed);
  reinterpret_cast<c10::VariableVersion*>(borrowed)->bump();
}

inline bool to_dtype(const c10::TensorImpl& tensor, Dtype& dtype) {
  switch (c10::typeMetaToScalarType(tensor.dtype())) {
    case c10::ScalarType::Float:
      dtype = Dtype::kFloat32;
      return true;
    case c10::ScalarType::Double:
      dtype = Dtype::kFloat64;
      return true;
    case c10::ScalarType::BFloat16:
      dtype = Dtype::kBFloat16;
      return true;
    case c10::ScalarType::Half:
      dtype = Dtype::kFloat16;
      return true;
    default:
      return false;
  }
}

// One real number in an accelerator's memory, that its kernels can read.
bool is_number_on_device(const c10::TensorImpl& tensor, Dtype& dtype);

// Does more than one element refer to one place, by a stride of 0?
bool is_expanded(const c10::TensorImpl& tensor);

// May more than one element refer to one place, by any strides?
bool may_overlap_itself(const c10::TensorImpl& tensor);

// Would counting up the tensor's version fail?
bool is_frozen_inference(const c10::TensorImpl& tensor);

// The tensor of a borrowed pointer, whose reference is counted.
at::Tensor tensor_of(const c10::TensorImpl* impl);

// Tries on a fresh tensor what this file takes for granted of torch's tensors. Returns what doesn't
// hold, or an empty string.
std::string why_not_this_torch();

// Shape, dtype and device, for a message.
std::string describe(const c10::TensorImpl& tensor);

}  // namespace fusedopt
