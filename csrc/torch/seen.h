// A set of addresses, for a call that visits each object once. Reads nothing that they point to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fusedopt {

class Seen {
 public:
  // Was the address new? A null pointer never is.
  bool add(const void* address) {
    if (2 * ++count_ > slots_.size()) grow();
    const void*& slot = slots_[place_of(address)];
    if (slot == address) return false;
    slot = address;
    return true;
  }

  bool has(const void* address) const {
    return !slots_.empty() && slots_[place_of(address)] == address;
  }

 private:
  size_t place_of(const void* address) const {
    const size_t mask = slots_.size() - 1;
    size_t at = (reinterpret_cast<uintptr_t>(address) >> 4) * 0x9e3779b97f4a7c15u >> 20 & mask;
    while (slots_[at] != nullptr && slots_[at] != address) at = (at + 1) & mask;
    return at;
  }

  void grow() {
    std::vector<const void*> before(slots_.empty() ? 64 : 2 * slots_.size());
    before.swap(slots_);
    for (const void* address : before) {
      if (address != nullptr) slots_[place_of(address)] = address;
    }
  }

  std::vector<const void*> slots_;
  size_t count_ = 0;
};

}  // namespace fusedopt
