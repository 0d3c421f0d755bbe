// Searching for tensors that share memory.
#include "torch/overlap.h"

#include <ATen/SparseCsrTensorImpl.h>
#include <ATen/SparseTensorImpl.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/variable.h>

#include "torch/look.h"
#include "torch/python.h"
#include "torch/reading.h"

namespace fusedopt {

namespace {

constexpr const char* kWithOther = "shares memory with another tensor of this optimizer";
constexpr const char* kWithGradient = "shares memory with its gradient";

// All that one slot's step writes.
template <typename Each>
void for_each_written(const Work& work, const Each& each) {
  for (int k = 0; k < kFirstState + kMaxEntries; ++k) {
    if (k != kGrad && work.operands[k].tensor != nullptr) each(work.operands[k]);
  }
}

void find_written(const Reading& reading, Overlaps& overlaps) {
  overlaps.written.clear();
  overlaps.storages.clear(reading.ready.size() * kMaxOperands);
  overlaps.any_foreign = false;
  for (const int slot : reading.ready) {
    const Work& work = reading.works()[slot];
    overlaps.any_foreign = overlaps.any_foreign || work.foreign;
    for_each_written(work, [&](const Operand& operand) {
      if (operand.tensor->numel() == 0) return;
      overlaps.written.push_back(range_of(*operand.tensor, slot));
      overlaps.storages.add(operand.storage);
    });
  }
  sort(overlaps.written);
  overlaps.shared = find_overlapping(overlaps.written);
  overlaps.known = true;
}

bool is_compressed(c10::Layout layout) {
  return layout == c10::kSparseCsr || layout == c10::kSparseCsc || layout == c10::kSparseBsr ||
         layout == c10::kSparseBsc;
}

// All memory that a tensor's elements are in. False: that isn't known. `object` is the tensor's, if
// it has one.
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

// A gradient that is going to be unscaled.
struct Gradient {
  int slot;
  const c10::TensorImpl* tensor;
  bool shared;  // its elements are read or written under another name too
};

// What unscaling writes: of a sparse gradient only the values.
const c10::TensorImpl* gradient_to_unscale(const Reading& reading, int slot) {
  const Work& work = reading.works()[slot];
  if (work.ready) return work.operands[kGrad].tensor;
  if (work.reason == nullptr || !reading.slots()[slot].is_tensor) return nullptr;
  const auto* meta = static_cast<const torch::autograd::AutogradMeta*>(
      impl_of(reading.slots()[slot].param).autograd_meta());
  if (meta == nullptr || !meta->grad_.defined()) return nullptr;
  const c10::TensorImpl* gradient = meta->grad_.unsafeGetTensorImpl();
  if (gradient->layout() != c10::kSparse) return gradient;
  return static_cast<const at::SparseTensorImpl*>(gradient)->values().unsafeGetTensorImpl();
}

// Calls each(offset) for the offset of every element, in elements.
template <typename Each>
void for_each_offset(const c10::TensorImpl& tensor, const Each& each) {
  std::vector<int64_t> index(tensor.dim(), 0);
  int64_t offset = 0;
  for (int64_t n = tensor.numel(); n > 0; --n) {
    each(offset);
    for (int64_t d = tensor.dim() - 1; d >= 0; --d) {
      offset += tensor.stride(d);
      if (++index[d] < tensor.size(d)) break;
      offset -= tensor.stride(d) * tensor.size(d);
      index[d] = 0;
    }
  }
}

// Do they lie beside each other like the columns of one buffer? Then each has its own place within
// the smallest stride, of which all other strides are multiples.
bool are_columns(const std::vector<Gradient*>& stretch, const char* begin, int64_t size) {
  const c10::TensorImpl& first = *stretch.front()->tensor;
  int64_t smallest = 0;
  for (int64_t d = 0; d < first.dim(); ++d) {
    if (first.size(d) == 1) continue;
    smallest = smallest == 0 ? first.stride(d) : std::min(smallest, first.stride(d));
  }
  for (int64_t d = 0; d < first.dim(); ++d) {
    if (first.size(d) != 1 && (smallest == 0 || first.stride(d) % smallest != 0)) return false;
  }
  const char* before = nullptr;  // sorted by address
  for (const Gradient* gradient : stretch) {
    const char* address = address_of(*gradient->tensor);
    if (gradient->shared || !same_sizes(*gradient->tensor, first) ||
        !same_strides(*gradient->tensor, first) || address == before ||
        (address - begin) / size >= smallest) {
      return false;
    }
    before = address;
  }
  return true;
}

// Which of the gradients share elements? All lie within one stretch of memory, but they may only
// interleave, as the columns of one buffer do.
void mark_shared(std::vector<Gradient*> stretch, const char* begin, const char* end) {
  const auto size = static_cast<int64_t>(stretch.front()->tensor->itemsize());
  const auto is_regular = [&](const Gradient* gradient) {
    const c10::TensorImpl& tensor = *gradient->tensor;
    return is_plain(tensor, plain_keys(tensor.device_type())) &&
           static_cast<int64_t>(tensor.itemsize()) == size &&
           (address_of(tensor) - begin) % size == 0;
  };
  if (!std::all_of(stretch.begin(), stretch.end(), is_regular)) {
    for (Gradient* gradient : stretch) gradient->shared = true;
    return;
  }
  if (are_columns(stretch, begin, size)) return;
  std::vector<bool> once((end - begin) / size + 1), twice(once.size());
  for (const Gradient* gradient : stretch) {
    const int64_t first = (address_of(*gradient->tensor) - begin) / size;
    for_each_offset(*gradient->tensor, [&](int64_t offset) {
      if (once[first + offset]) twice[first + offset] = true;
      once[first + offset] = true;
    });
  }
  for (Gradient* gradient : stretch) {
    const int64_t first = (address_of(*gradient->tensor) - begin) / size;
    for_each_offset(*gradient->tensor, [&](int64_t offset) {
      gradient->shared = gradient->shared || twice[first + offset];
    });
  }
}

// Cuts sorted ranges into stretches that don't touch.
void mark_shared(std::vector<Gradient>& gradients, const std::vector<Range>& ranges) {
  for (size_t i = 0; i < ranges.size();) {
    size_t last = i;
    while (last + 1 < ranges.size() && ranges[last + 1].begin < ranges[last].reach) ++last;
    std::vector<Gradient*> stretch;
    for (size_t k = i; k <= last; ++k) stretch.push_back(&gradients[ranges[k].owner]);
    if (stretch.size() > 1) mark_shared(stretch, ranges[i].begin, ranges[last].reach);
    i = last + 1;
  }
}

// The memory of what torch's own step takes.
struct Others {
  std::vector<Range> read;
  std::vector<Range> written;
};

// What torch's own step takes of a slot. Returns why nobody knows where that is, or null.
const char* enter(const Slot& slot, Others& others) {
  constexpr const char* kUnknown = "a tensor doesn't say where its memory is";
  const c10::TensorImpl& param = impl_of(slot.param);
  if (!for_each_memory(param, slot.param, [&](Range range) { others.written.push_back(range); })) {
    return kUnknown;
  }
  const auto* meta = static_cast<const torch::autograd::AutogradMeta*>(param.autograd_meta());
  if (meta != nullptr && meta->grad_.defined()) {
    c10::TensorImpl& grad = *meta->grad_.unsafeGetTensorImpl();
    const auto read = [&](Range range) { others.read.push_back(range); };
    if (!for_each_memory(grad, grad.pyobj_slot()->load_pyobj(), read)) return kUnknown;
  }
  if (slot.state == nullptr || !PyDict_Check(slot.state)) return nullptr;
  PyObject *key, *value;
  Py_ssize_t position = 0;
  while (PyDict_Next(slot.state, &position, &key, &value)) {
    const auto written = [&](Range range) { others.written.push_back(range); };
    if (is_tensor(value) && !for_each_memory(impl_of(value), value, written)) return kUnknown;
  }
  return nullptr;
}

Others find_others(Reading& reading) {
  Others others;
  for (size_t i = 0; i < reading.slots().size(); ++i) {
    const Slot& slot = reading.slots()[i];
    if (reading.works()[i].reason == nullptr || !slot.is_tensor) continue;
    if (const char* unknown = enter(slot, others)) by_user(reading, unknown);
  }
  sort(others.read);
  sort(others.written);
  return others;
}

// An option that is a tensor which the step writes has another value for each parameter.
void find_written_options(Reading& reading, const Others& others) {
  const auto refuse = [&](int) { by_user(reading, "an option is a tensor that the step writes"); };
  for (const c10::TensorImpl* option : reading.read.numbers) {
    for_each_memory(*option, nullptr, [&](Range range) {
      for_each_overlapping(reading.cache.overlaps.written, range, refuse);
      for_each_overlapping(others.written, range, refuse);
      if (!reading.scaler.scaled) return;
      for (const int slot : reading.ready) {
        const c10::TensorImpl& tensor = *reading.works()[slot].operands[kGrad].tensor;
        const Range gradient = range_of(tensor, slot);
        const bool meets = gradient.begin < range.end && range.begin < gradient.end;
        if (meets && tensor.numel() != 0) refuse(slot);
      }
    });
  }
}

}  // namespace

void find_overlaps(Reading& reading, const std::vector<int>& suspects) {
  Overlaps& overlaps = reading.cache.overlaps;
  std::vector<Work>& works = reading.cache.works;
  const bool all = !overlaps.known || overlaps.any_foreign;
  if (!overlaps.known) find_written(reading, overlaps);
  bool any = false;
  const auto hand_over = [&](int slot, const char* reason) {
    any = true;
    if (works[slot].reason == nullptr) works[slot].reason = reason;
  };
  for (const int slot : overlaps.shared) hand_over(slot, kWithOther);
  for (const int slot : all ? reading.ready : suspects) {
    const Operand& gradient = works[slot].operands[kGrad];
    if (gradient.tensor == nullptr || works[slot].numel == 0 ||
        !may_be_written(gradient, overlaps)) {
      continue;
    }
    for_each_overlapping(overlaps.written, range_of(*gradient.tensor, slot), [&](int other) {
      hand_over(slot, other == slot ? kWithGradient : kWithOther);
      hand_over(other, kWithOther);
    });
  }
  Others others;
  if (any || reading.any_for_torch) {
    others = find_others(reading);
    for (const int slot : reading.ready) {
      const Work& work = works[slot];
      const auto meets = [&](const std::vector<Range>& ranges, const c10::TensorImpl& tensor) {
        if (tensor.numel() == 0) return;
        for_each_overlapping(ranges, range_of(tensor, slot),
                             [&](int) { hand_over(slot, kWithOther); });
      };
      if (work.reason != nullptr) continue;
      if (work.operands[kGrad].tensor != nullptr)
        meets(others.written, *work.operands[kGrad].tensor);
      for_each_written(work, [&](const Operand& operand) {
        meets(others.written, *operand.tensor);
        meets(others.read, *operand.tensor);
      });
    }
  }
  find_written_options(reading, others);
  if (!any) return;
  reading.any_for_torch = true;
  const auto shared = [&](int slot) { return works[slot].reason != nullptr; };
  for (std::vector<int>* slots : {&reading.ready, &reading.checked}) {
    slots->erase(std::remove_if(slots->begin(), slots->end(), shared), slots->end());
  }
}

std::vector<int> find_shared_gradients(const Reading& reading) {
  std::vector<Gradient> gradients;
  std::vector<Range> ranges;
  std::vector<bool> twin(reading.slots().size());
  for (const auto& [later, first] : reading.cache.twins) twin[later] = true;
  for (int slot = 0; slot < static_cast<int>(reading.slots().size()); ++slot) {
    const c10::TensorImpl* gradient = twin[slot] ? nullptr : gradient_to_unscale(reading, slot);
    if (gradient == nullptr || gradient->numel() == 0) continue;
    const auto number = static_cast<int>(gradients.size());
    const bool strided = gradient->layout() == c10::kStrided;
    gradients.push_back(
        {slot, gradient,
         is_frozen_inference(*gradient) || (strided && may_overlap_itself(*gradient))});
    PyObject* object = const_cast<c10::TensorImpl*>(gradient)->pyobj_slot()->load_pyobj();
    for_each_memory(*gradient, object,
                    [&](Range range) { ranges.push_back({range.begin, range.end, number}); });
  }
  sort(ranges);
  mark_shared(gradients, ranges);
  std::vector<int> found;
  for (const Gradient& gradient : gradients) {
    if (gradient.shared) found.push_back(gradient.slot);
  }
  return found;
}

}  // namespace fusedopt
