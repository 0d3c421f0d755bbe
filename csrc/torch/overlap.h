// Which tensors may share memory, so that a kernel must not step them side by side.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "torch/operand.h"

namespace fusedopt {

struct Reading;

// The bytes from a tensor's first element to the end of its last.
struct Range {
  const char* begin;
  const char* end;
  int owner;
  const char* reach = nullptr;  // the furthest end of this and all before it, once sorted
};

inline int64_t extent_of(const c10::TensorImpl& tensor) {
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  return (last + 1) * static_cast<int64_t>(tensor.itemsize());
}

inline Range range_of(const c10::TensorImpl& tensor, int owner) {
  const char* begin = address_of(tensor);
  return {begin, begin + extent_of(tensor), owner};
}

// Sorts by the first byte.
inline void sort(std::vector<Range>& ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  const char* reach = nullptr;
  for (Range& range : ranges) range.reach = reach = std::max(reach, range.end);
}

// The owners of all sorted ranges that overlap another range, some owners more than once. Tensors
// that interleave without sharing an element count as overlapping.
inline std::vector<int> find_overlapping(const std::vector<Range>& ranges) {
  std::vector<int> owners;
  for (size_t i = 1, furthest = 0; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[furthest].end) {
      owners.push_back(ranges[i].owner);
      owners.push_back(ranges[furthest].owner);
    }
    if (ranges[i].end > ranges[furthest].end) furthest = i;
  }
  return owners;
}

// Calls each(owner) for all sorted ranges that overlap the range `with`.
template <typename Each>
void for_each_overlapping(const std::vector<Range>& ranges, const Range& with, const Each& each) {
  auto found = std::partition_point(ranges.begin(), ranges.end(),
                                    [&](const Range& range) { return range.reach <= with.begin; });
  for (; found != ranges.end() && found->begin < with.end; ++found) {
    if (found->end > with.begin) each(found->owner);
  }
}

// Where the elements of tensors lie.
class Ranges {
 public:
  explicit Ranges(size_t most) { all_.reserve(most); }

  // False, if the tensor overlaps itself.
  bool add(const c10::TensorImpl& tensor) {
    if (tensor.numel() == 0) return true;
    if (is_expanded(tensor) || may_overlap_itself(tensor)) return false;
    const Range range = range_of(tensor, 0);
    ascending_ = ascending_ && (all_.empty() || all_.back().end <= range.begin);
    all_.push_back(range);
    return true;
  }

  // False, if any two overlap. Called when all are added.
  bool finish() {
    if (!ascending_) std::sort(all_.begin(), all_.end(), before);
    const char* reach = nullptr;
    for (Range& range : all_) {
      if (range.begin < reach) return false;
      range.reach = reach = range.end;
    }
    return true;
  }

  bool any_overlaps(const c10::TensorImpl& tensor) const {
    if (tensor.numel() == 0 || all_.empty()) return false;
    const Range range = range_of(tensor, 0);
    if (range.begin >= all_.back().end || range.end <= all_.front().begin) return false;
    bool any = false;
    for_each_overlapping(all_, range, [&](int) { any = true; });
    return any;
  }

 private:
  static bool before(const Range& a, const Range& b) { return a.begin < b.begin; }

  std::vector<Range> all_;
  bool ascending_ = true;
};

// A set of addresses that takes up to 6 % of all other addresses for its own.
class Filter {
 public:
  void clear(size_t entries) {
    int bits = 6;
    while ((size_t{1} << bits) < 16 * entries) ++bits;
    shift_ = 64 - bits;
    words_.assign(size_t{1} << (bits - 6), 0);
  }
  void add(const void* address) {
    const uint64_t bit = bit_of(address);
    words_[bit / 64] |= uint64_t{1} << bit % 64;
  }
  bool may_contain(const void* address) const {
    const uint64_t bit = bit_of(address);
    return words_.empty() || (words_[bit / 64] >> bit % 64 & 1) != 0;
  }

 private:
  uint64_t bit_of(const void* address) const {
    return reinterpret_cast<uint64_t>(address) * 0x9e3779b97f4a7c15u >> shift_;
  }

  int shift_ = 0;
  std::vector<uint64_t> words_;
};

// What a step writes, as the last step left it: searched anew only where an address has changed.
struct Overlaps {
  bool known = false;
  std::vector<Range> written;  // parameters, states, counts of the slots that are ready
  std::vector<int> shared;     // the slots of those that overlap others
  Filter storages;             // of what is written
  bool any_foreign = false;    // some are in memory that torch's allocators haven't made
};

// May a gradient be in memory that a step writes? Asked of every gradient: most are in a storage of
// their own.
FUSEDOPT_INLINE bool may_be_written(const Operand& gradient, const Overlaps& overlaps) {
  return overlaps.any_foreign || overlaps.storages.may_contain(gradient.storage) ||
         !owns_memory(gradient);
}

// Finds all parameters that share memory with others, by parameter, state or gradient, and leaves
// them to torch's own step, which works through the parameters one after the other.
void find_overlaps(Reading& reading, const std::vector<int>& suspects);

// shared_gradients.cpp: the slots of gradients that must be copied before they are unscaled in
// place: each element must be written once, and read under no other name.
std::vector<int> find_shared_gradients(Reading& reading);

}  // namespace fusedopt
