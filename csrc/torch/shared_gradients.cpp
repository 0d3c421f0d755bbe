// Searching for gradients that share memory, which can't be unscaled where they are. Reads tensors
// only.
#include "torch/look.h"
#include "torch/memory.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

// A gradient that is going to be unscaled.
struct Gradient {
  int slot;
  const c10::TensorImpl* tensor;
  bool shared;  // its elements are read or written under another name too
};

// What unscaling writes: of a sparse gradient only the values.
const c10::TensorImpl* gradient_to_unscale(Reading& reading, int slot) {
  const Work& work = reading.works()[slot];
  if (work.ready) return work.operands[kGrad].tensor;
  if (work.reason == nullptr || !reading.slots()[slot].is_tensor) return nullptr;
  const c10::TensorImpl* gradient = gradient_of(reading, reading.slots()[slot].param);
  if (gradient == nullptr || gradient->layout() != c10::kSparse) return gradient;
  const at::Tensor values = static_cast<const at::SparseTensorImpl*>(gradient)->values();
  reading.owned.gradients.push_back(values.getIntrusivePtr());  // sums have other values
  return values.unsafeGetTensorImpl();
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

// Do the gradients lie beside each other as the columns of one buffer do? Then each has its own
// place within the smallest stride, of which all other strides are multiples.
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

// Marks the gradients that share elements. All lie within one stretch of memory, but they may only
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

// The same of gradients anywhere: cuts sorted ranges into stretches that don't touch.
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

}  // namespace

std::vector<int> find_shared_gradients(Reading& reading) {
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
