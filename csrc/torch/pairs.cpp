// Writing averages: reads and writes the tensors that it was given, and runs no Python code.
#include "torch/pairs.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <cstring>
#include <optional>

#include "engine/tuning.h"
#include "torch/operand.h"
#include "torch/overlap.h"
#include "torch/seen.h"

namespace fusedopt {

namespace {

// Copying this many bytes takes less time than torch's way to copy_().
constexpr size_t kSmallCopy = 65536;

c10::TensorImpl& tensor_in(const Covered& item) { return *item.tensor.unsafeGetTensorImpl(); }

bool is_plain_pair(const Covered& target, const Covered& source) {
  const c10::TensorImpl& to = tensor_in(target);
  const c10::TensorImpl& from = tensor_in(source);
  return to.key_set() == kPlainKeys && from.key_set() == kPlainKeys && is_allocated(to) &&
         is_allocated(from) && same_sizes(to, from);
}

// Do both go through memory alike, from one end to the other?
bool is_dense_pair(const Pair& pair) {
  const c10::TensorImpl& to = tensor_in(*pair.target);
  const c10::TensorImpl& from = tensor_in(*pair.source);
  return to.is_non_overlapping_and_dense() && from.is_non_overlapping_and_dense() &&
         same_strides(to, from);
}

void copy_pair(const Pair& pair) {
  const c10::TensorImpl& to = tensor_in(*pair.target);
  const c10::TensorImpl& from = tensor_in(*pair.source);
  const size_t bytes = to.numel() * to.itemsize();
  if (bytes == 0) return;
  if (bytes <= kSmallCopy && to.dtype() == from.dtype() && is_dense_pair(pair)) {
    std::memcpy(const_cast<char*>(address_of(to)), address_of(from), bytes);
  } else {
    const at::AutoDispatchBelowADInplaceOrView below;
    pair.target->tensor.copy_(pair.source->tensor);
  }
}

int64_t elements_of(const std::vector<Pair>& pairs) {
  int64_t elements = 0;
  for (const Pair& pair : pairs) elements += tensor_in(*pair.target).numel();
  return elements;
}

}  // namespace

bool Pairs::add(std::vector<Covered>& targets, std::vector<Covered>& sources, bool copied) {
  if (targets.size() != sources.size()) return false;
  std::vector<Pair>& pairs = copied ? copied_ : averaged_;
  pairs.reserve(pairs.size() + targets.size());
  for (size_t i = 0; i < targets.size(); ++i) {
    if (!placements_.alike(targets[i], sources[i]) || !is_plain_pair(targets[i], sources[i])) {
      return false;
    }
    if (!(copied ? add_copy(targets[i], sources[i]) : add_average(targets[i], sources[i]))) {
      return false;
    }
  }
  return true;
}

bool Pairs::add_copy(const Covered& target, const Covered& source) {
  const c10::TensorImpl& to = tensor_in(target);
  const c10::TensorImpl& from = tensor_in(source);
  Dtype any;
  if (to.dtype() != from.dtype() && !(to_dtype(to, any) && to_dtype(from, any))) return false;
  copied_.push_back({&target, &source});
  return true;
}

bool Pairs::add_average(Covered& target, Covered& source) {
  const c10::TensorImpl& to = tensor_in(target);
  const c10::TensorImpl& from = tensor_in(source);
  const Pair pair{&target, &source};
  if (to_dtype(to, target.dtype) && to_dtype(from, source.dtype)) {
    averaged_.push_back(pair);
    return formula_.mixed || target.dtype == source.dtype;
  }
  const auto integer = caffe2::TypeMeta::Make<int64_t>();
  integers_.push_back(pair);
  return to.dtype() == integer && from.dtype() == integer && is_dense_pair(pair) &&
         formula_.takes_integers();
}

// Has every tensor that is written a storage to itself? That is quickly seen, and usual.
bool Pairs::have_own_memory(const at::Tensor* other) const {
  Seen storages;
  if (other != nullptr && !has_own_storage(*other, storages)) return false;
  const auto lists = {&averaged_, &integers_, &copied_};
  for (const auto* pairs : lists) {
    for (const Pair& pair : *pairs) {
      if (!has_own_storage(pair.target->tensor, storages)) return false;
    }
  }
  for (const auto* pairs : lists) {
    for (const Pair& pair : *pairs) {
      const Operand source = operand_of(tensor_in(*pair.source));
      if (!owns_memory(source) || storages.has(source.storage)) return false;
    }
  }
  return true;
}

bool Pairs::may_write_beside(const at::Tensor* other) const {
  if (have_own_memory(other)) return true;
  const auto lists = {&averaged_, &integers_, &copied_};
  Ranges ranges(averaged_.size() + integers_.size() + copied_.size() + 1);
  if (other != nullptr && !ranges.add(*other->unsafeGetTensorImpl())) return false;
  for (const auto* pairs : lists) {
    for (const Pair& pair : *pairs) {
      if (!ranges.add(tensor_in(*pair.target))) return false;
    }
  }
  if (!ranges.finish()) return false;
  for (const auto* pairs : lists) {
    for (const Pair& pair : *pairs) {
      if (ranges.any_overlaps(tensor_in(*pair.source))) return false;
    }
  }
  return true;
}

bool Pairs::copy_takes_long() const { return elements_of(copied_) >= kReleaseElements; }

bool Pairs::takes_long() const {
  return copy_takes_long() || elements_of(averaged_) >= kReleaseElements;
}

void Pairs::copy() {
  std::optional<py::gil_scoped_release> release;
  if (copy_takes_long()) release.emplace();
  for (const Pair& pair : copied_) copy_pair(pair);
}

void Pairs::average_integers() {
  for (const Pair& pair : integers_) {
    const c10::TensorImpl& to = tensor_in(*pair.target);
    if (to.numel() == 0) continue;
    formula_.average_integers(reinterpret_cast<int64_t*>(const_cast<char*>(address_of(to))),
                              reinterpret_cast<const int64_t*>(address_of(tensor_in(*pair.source))),
                              to.numel());
  }
}

void Pairs::write() {
  for (const auto* pairs : {&averaged_, &integers_, &copied_}) unshare_targets(*pairs);
  average_integers();
  copy();
  sweep_pairs(*formula_.kernel, formula_.options, averaged_);
  for (const auto* pairs : {&averaged_, &integers_, &copied_}) count_versions(*pairs);
}

}  // namespace fusedopt
