// Reading lists of tensors, and sweeping kernels over them: runs no Python code but a list's own.
#include "torch/tensors.h"

#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <deque>
#include <optional>

#include "cpu/isa.h"
#include "engine/layout.h"
#include "engine/tuning.h"
#include "torch/modes.h"
#include "torch/overlap.h"
#include "torch/parallel.h"
#include "torch/prefetch.h"
#include "torch/python.h"
#include "torch/seen.h"

namespace fusedopt {

namespace {

// Adds the gradient that `param.grad` gives. False, if reading that would warn.
bool read_gradient(PyObject* param, std::vector<Covered>& all) {
  const at::Tensor& tensor = THPVariable_Unpack(param);
  const auto* meta =
      static_cast<const torch::autograd::AutogradMeta*>(impl_of(param).autograd_meta());
  if (meta == nullptr) return true;
  // Owned from here on: autograd replaces gradients without the interpreter's lock.
  at::Tensor grad = meta->grad_;
  if (!grad.defined()) return tensor.is_leaf() || tensor.retains_grad();
  all.push_back({std::move(grad), {}});
  return true;
}

// Gradients that are made anew in each step lie scattered. The objects of this many are asked for
// before the first is read.
constexpr Py_ssize_t kReadTogether = 32;

void prefetch_gradients(PyObject* const* params, Py_ssize_t n) {
  const torch::autograd::AutogradMeta* metas[kReadTogether];
  for (Py_ssize_t k = 0; k < n; ++k) {
    metas[k] =
        static_cast<const torch::autograd::AutogradMeta*>(impl_of(params[k]).autograd_meta());
    prefetch<0, 1>(metas[k] == nullptr ? nullptr : &metas[k]->grad_);
  }
  for (Py_ssize_t k = 0; k < n; ++k) {
    if (metas[k] == nullptr) continue;
    prefetch<0, sizeof(c10::TensorImpl)>(metas[k]->grad_.unsafeGetTensorImpl());
  }
}

void prefetch_memory(const at::Tensor& tensor) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  prefetch<0, sizeof(c10::StorageImpl)>(impl.unsafe_storage().unsafeGetStorageImpl());
  prefetch<0, 1>(version_counter_of(impl));
}

// Sets the dtype of what is covered.
bool take(Covered& item) {
  if (!is_covered(item.tensor)) return false;
  return to_dtype(*item.tensor.unsafeGetTensorImpl(), item.dtype);
}

const c10::TensorImpl& impl_of(const Covered& item) { return *item.tensor.unsafeGetTensorImpl(); }

struct PairBucket {
  Dtype target;
  Dtype source;
  std::vector<TensorEntry> tensors = {};
  std::vector<Layout> layouts = {};
  int64_t elements = 0;
};

PairBucket& bucket_for(std::vector<PairBucket>& buckets, Dtype target, Dtype source) {
  for (PairBucket& bucket : buckets) {
    if (bucket.target == target && bucket.source == source) return bucket;
  }
  return buckets.emplace_back(PairBucket{target, source});
}

void add_pair(const Pair& pair, PairBucket& bucket, std::deque<LayoutBuffer>& layouts) {
  const c10::TensorImpl& target = impl_of(*pair.target);
  const c10::TensorImpl& source = impl_of(*pair.source);
  TensorEntry& entry = bucket.tensors.emplace_back();
  entry.operands[kParam] = const_cast<char*>(address_of(target));
  entry.operands[kGrad] = const_cast<char*>(address_of(source));
  entry.numel = target.numel();
  entry.layout = -1;
  append(entry, bucket.elements);
  if (target.is_non_overlapping_and_dense() && same_strides(target, source)) return;
  const auto sizes = target.sizes();
  layouts.push_back(make_layout(static_cast<int>(sizes.size()), sizes.data(),
                                {target.strides().data(), source.strides().data()},
                                bucket.target != bucket.source));
  bucket.layouts.push_back(layouts.back().view());
  entry.layout = static_cast<int32_t>(bucket.layouts.size()) - 1;
}

void sweep(const cpu::Kernel& kernel, const double* options, const PairBucket& bucket) {
  const bool in_double = bucket.target == Dtype::kFloat64 || bucket.source == Dtype::kFloat64;
  const Dtype dtype = in_double ? Dtype::kFloat64 : bucket.target;
  const int compute = cpu::Kernel::compute(dtype);
  std::vector<char> rule(kernel.rule_bytes[compute]);
  kernel.prepare[compute](options, Counts{1}, kLargest[static_cast<int>(dtype)], rule.data());
  const Format formats[kMaxOperands] = {format_of(bucket.target), format_of(bucket.source)};
  const Table table{bucket.tensors.data(),
                    static_cast<int64_t>(bucket.tensors.size()),
                    rule.data(),
                    bucket.layouts.data(),
                    false,
                    1,
                    bucket.target != bucket.source ? formats : nullptr};
  cpu::run(kernel, dtype, table, parallel);
}

}  // namespace

bool is_covered(const at::Tensor& tensor) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  if (impl.key_set() != kPlainKeys && (!is_plain_cpu(impl) || is_frozen_inference(impl))) {
    return false;
  }
  PyObject* wrapper = tensor.unsafeGetTensorImpl()->pyobj_slot()->load_pyobj();
  Dtype dtype;
  return (wrapper == nullptr || is_exact(wrapper)) && to_dtype(impl, dtype) && is_allocated(impl);
}

py::object listed(const py::object& tensors) {
  if (is_tensor(tensors.ptr())) return py::make_tuple(tensors);
  if (PyList_CheckExact(tensors.ptr()) || PyTuple_CheckExact(tensors.ptr())) return tensors;
  auto list = py::reinterpret_steal<py::object>(PySequence_List(tensors.ptr()));
  if (!list) throw py::error_already_set();
  return list;
}

bool read_tensors(const py::object& list, std::vector<Covered>& all) {
  if (why_transformed() != nullptr) return false;
  const auto count = PySequence_Fast_GET_SIZE(list.ptr());
  all.reserve(count);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* object = PySequence_Fast_GET_ITEM(list.ptr(), i);
    if (!is_exact(object)) return false;
    all.push_back({THPVariable_Unpack(object), {}});
    if (!take(all.back())) return false;
  }
  return true;
}

bool read_gradients(const py::object& params, std::vector<Covered>& all) {
  if (why_transformed() != nullptr) return false;
  const auto count = PySequence_Fast_GET_SIZE(params.ptr());
  PyObject* const* objects = PySequence_Fast_ITEMS(params.ptr());
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!is_exact(objects[i])) return false;
  }
  all.reserve(count);
  for (Py_ssize_t i = 0; i < count; i += kReadTogether) {
    const auto n = std::min<Py_ssize_t>(kReadTogether, count - i);
    prefetch_gradients(objects + i, n);
    const size_t before = all.size();
    for (Py_ssize_t k = i; k < i + n; ++k) {
      if (!read_gradient(objects[k], all)) return false;
    }
    for (size_t k = before; k < all.size(); ++k) prefetch_memory(all[k].tensor);
    for (size_t k = before; k < all.size(); ++k) {
      if (!take(all[k])) return false;
    }
  }
  return true;
}

bool read_again(std::vector<Covered>& all) { return std::all_of(all.begin(), all.end(), take); }

at::Tensor frozen(const at::Tensor& tensor) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  return at::Tensor(impl.shallow_copy_and_detach(impl.version_counter(), true));
}

bool has_own_storage(const at::Tensor& tensor, Seen& storages) {
  c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  return impl.is_non_overlapping_and_dense() && owns_memory(operand_of(impl)) &&
         storages.add(impl.unsafe_storage().unsafeGetStorageImpl());
}

bool may_write(const std::vector<Covered>& all) {
  Seen storages;
  const auto is_alone = [&](const Covered& item) { return has_own_storage(item.tensor, storages); };
  if (std::all_of(all.begin(), all.end(), is_alone)) return true;
  Ranges ranges(all.size());
  const auto add = [&](const Covered& item) { return ranges.add(impl_of(item)); };
  return std::all_of(all.begin(), all.end(), add) && ranges.finish();
}

void unshare_targets(const std::vector<Pair>& pairs) {
  for (const Pair& pair : pairs) {
    const at::Tensor& target = pair.target->tensor;
    if (is_lazily_copied(operand_of(*target.unsafeGetTensorImpl()))) target.mutable_data_ptr();
  }
}

void count_versions(const std::vector<Pair>& pairs) {
  for (const Pair& pair : pairs) {
    // As torch's operators do: a DTensor's own version counts up, and not its piece's.
    PyObject* whole = pair.target->whole;
    if (whole != nullptr) {
      impl_of(whole).bump_version();
    } else {
      count_version(operand_of(*pair.target->tensor.unsafeGetTensorImpl()));
    }
  }
}

void sweep_pairs(const cpu::Kernel& kernel, const double* options, const std::vector<Pair>& pairs) {
  std::vector<PairBucket> buckets;
  std::deque<LayoutBuffer> layouts;
  int64_t elements = 0;
  for (const Pair& pair : pairs) {
    if (pair.target->tensor.numel() == 0) continue;
    elements += pair.target->tensor.numel();
    add_pair(pair, bucket_for(buckets, pair.target->dtype, pair.source->dtype), layouts);
  }
  // While the lock is released other threads may give tensors other memory.
  std::vector<c10::Storage> storages;
  std::optional<py::gil_scoped_release> release;
  if (elements >= kReleaseElements) {
    for (const Pair& pair : pairs) {
      storages.push_back(pair.target->tensor.storage());
      storages.push_back(pair.source->tensor.storage());
    }
    release.emplace();
  }
  for (const PairBucket& bucket : buckets) sweep(kernel, options, bucket);
}

}  // namespace fusedopt
