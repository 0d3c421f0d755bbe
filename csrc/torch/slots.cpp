// Reading the lists of parameters and optimizer.state: which parameters there are, and the state of
// each. Runs no Python code; writes the cache's slots.
#include <unordered_map>
#include <utility>

#include "torch/look.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

// Are the entries of optimizer.state those of the last step, in the same order? Then the slots'
// states are found without hashing a tensor (Tensor.__hash__ is Python code).
bool find_states_as_before(Cache& cache, PyObject* state) {
  PyObject *key, *value;
  Py_ssize_t position = 0;
  size_t entry = 0;
  if (static_cast<Py_ssize_t>(cache.state_order.size()) != PyDict_Size(state)) return false;
  while (PyDict_Next(state, &position, &key, &value)) {
    const int slot = cache.state_order[entry++];
    if (slot < 0) {  // an entry that belonged to no parameter; a tensor may be one's by now
      if (is_tensor(key)) return false;
      continue;
    }
    if (cache.slots[slot].param != key) return false;
    cache.slots[slot].state = value;
  }
  return true;
}

void find_states(Cache& cache, PyObject* state) {
  std::unordered_map<PyObject*, int> slot_of;
  cache.state_order.clear();
  cache.twins.clear();
  for (int i = 0; i < static_cast<int>(cache.slots.size()); ++i) {
    cache.slots[i].state = nullptr;
    const auto [first, is_new] = slot_of.emplace(cache.slots[i].param, i);
    if (!is_new) cache.twins.emplace_back(i, first->second);
  }
  PyObject *key, *value;
  Py_ssize_t position = 0;
  while (PyDict_Next(state, &position, &key, &value)) {
    const auto found = slot_of.find(key);
    const int slot = found == slot_of.end() ? -1 : found->second;
    cache.state_order.push_back(slot);
    if (slot >= 0) cache.slots[slot].state = value;
  }
}

}  // namespace

void read_slots(Reading& reading) {
  Cache& cache = reading.cache;
  // The slots' states are known only if all parameters are the same.
  const DictState states = std::exchange(cache.states, {});
  size_t count = 0;
  bool same = true;  // the same parameters as in the last step, in the same places
  bool all_tensors = true;
  for (int i = 0; i < static_cast<int>(reading.groups.size()); ++i) {
    PyObject* params = reading.groups[i].params;
    const int size = static_cast<int>(PySequence_Fast_GET_SIZE(params));
    if (cache.slots.size() < count + size) cache.slots.resize(count + size);
    for (int k = 0; k < size; ++k) {
      PyObject* param = PySequence_Fast_GET_ITEM(params, k);
      Slot& slot = cache.slots[count++];
      same = same && slot.param == param;
      slot = {param, slot.state, i, k, is_tensor(param)};
      all_tensors = all_tensors && slot.is_tensor;
    }
  }
  same = same && cache.slots.size() == count;
  cache.slots.resize(count);
  if (same) {
    cache.states = states;
  } else {
    cache.state_order.clear();
    cache.twins.clear();
  }
  if (all_tensors) return;
  for (const Slot& slot : cache.slots) {
    if (!slot.is_tensor) why_not_tensor(reading, slot, "", slot.param);
  }
}

void read_states(Cache& cache, PyObject* state) {
  if (cache.states.still(state)) return;
  for (Slot& slot : cache.slots) slot.state = nullptr;
  if (!find_states_as_before(cache, state)) find_states(cache, state);
  for (const auto& [twin, first] : cache.twins) cache.slots[twin].state = cache.slots[first].state;
}

}  // namespace fusedopt
