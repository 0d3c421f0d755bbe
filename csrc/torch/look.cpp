// Reading the lists of parameters and optimizer.state, and looking at each parameter. Runs no
// Python code; writes the cache.
#include "torch/look.h"

#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <set>
#include <stdexcept>
#include <unordered_map>

#include "engine/tuning.h"
#include "torch/classes.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

bool holds(const std::vector<py::object>& objects, PyObject* object) {
  return std::any_of(objects.begin(), objects.end(),
                     [&](const py::object& held) { return held.ptr() == object; });
}

void read_slots(Reading& reading) {
  Cache& cache = reading.cache;
  // What was read of optimizer.state is known again only if all below are the same, and no
  // exception comes between.
  const DictState states = std::exchange(cache.states, {});
  size_t count = 0;
  bool same = true;  // the same parameters as in the last step, in the same places
  for (int i = 0; i < static_cast<int>(reading.groups.size()); ++i) {
    PyObject* params = reading.groups[i].params;
    const int size = static_cast<int>(PySequence_Fast_GET_SIZE(params));
    if (cache.slots.size() < count + size) cache.slots.resize(count + size);
    for (int k = 0; k < size; ++k) {
      PyObject* param = PySequence_Fast_GET_ITEM(params, k);
      Slot& slot = cache.slots[count++];
      same = same && slot.param == param;
      slot = {param, slot.state, i, k, is_tensor(param)};
      if (!slot.is_tensor) why_not_tensor(reading, slot, "", param);
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
}

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

void read_states(Cache& cache, PyObject* state) {
  if (cache.states.still(state)) return;
  for (Slot& slot : cache.slots) slot.state = nullptr;
  if (!find_states_as_before(cache, state)) find_states(cache, state);
  for (const auto& [twin, first] : cache.twins) cache.slots[twin].state = cache.slots[first].state;
}

// The gradient. Another thread may replace it while it is in use: autograd does so without the
// interpreter's lock, and lets go the one before. So it is owned from the moment it is read, as
// torch's own `param.grad` is, if there is another thread: 17 ns for each of 1000 tensors, on an
// EPYC Milan (2026-11-25, medians of 30 rounds); locking the node that accumulates it as well, 95.
FUSEDOPT_INLINE c10::TensorImpl* gradient_of(Reading& reading, PyObject* param) {
  // TensorImpl::grad() makes two calls to learn the same.
  const auto* meta =
      static_cast<const torch::autograd::AutogradMeta*>(impl_of(param).autograd_meta());
  if (meta == nullptr || !meta->grad_.defined()) return nullptr;
  if (!reading.owning) return meta->grad_.unsafeGetTensorImpl();
  reading.owned.gradients.push_back(meta->grad_.getIntrusivePtr());
  c10::TensorImpl* gradient = reading.owned.gradients.back().get();
  return gradient == c10::UndefinedTensorImpl::singleton() ? nullptr : gradient;
}

// Has it no gradient, and a class that lets torch see that?
bool is_passed_over(PyObject* param) {
  const TensorClass is = find_class(Py_TYPE(param));
  const auto* meta =
      static_cast<const torch::autograd::AutogradMeta*>(impl_of(param).autograd_meta());
  return is.known && is.has_grad && (meta == nullptr || !meta->grad_.defined());
}

// Looks anew at what isn't as it was. Returns whether a kernel takes it.
__attribute__((noinline)) bool look_closely(Reading& reading, int index, c10::TensorImpl* grad,
                                            bool dict) {
  const Slot& slot = reading.cache.slots[index];
  Work& work = reading.cache.works[index];
  work.usual_way = 0;
  work.reason = dict ? check_slot(reading, slot, grad, work)
                     : by_user(reading, "optimizer.state is not a plain dict");
  work.ready = work.reason == nullptr;
  if (!work.ready) {
    reading.any_for_torch = true;
    if (dict) refuse_step(reading, slot);
    return false;
  }
  if (is_usual(reading, slot, work)) {
    work.usual_way = reading.groups[slot.group].way;
    work.usual_type = work.operands[kParam].tensor->dtype();
  }
  reading.checked.push_back(index);
  return true;
}

// Looks at one parameter. Those whose gradient may be in memory that the step writes are
// `suspects`.
FUSEDOPT_INLINE void look_at(Reading& reading, int index, const Group* groups, const Slot& slot,
                             Work& work, bool dict, bool all, std::vector<int>& suspects) {
  if (!slot.is_tensor || !is_exact(slot.param)) {
    if (!all && slot.is_tensor && is_passed_over(slot.param)) return;
    const char* reason = slot.is_tensor ? why_not_class(reading, slot.param)
                                        : why_not_tensor(reading, slot, "", slot.param);
    if (reason != nullptr) {
      work.reason = reason;
      reading.any_for_torch = true;
      return;
    }
  }
  c10::TensorImpl* grad = gradient_of(reading, slot.param);
  if (grad == nullptr && !all) return;
  if (dict && grad != nullptr && is_unchanged(groups[slot.group], slot, *grad, work)) {
    work.ready = true;
    work.first = false;
  } else if (!look_closely(reading, index, grad, dict)) {
    return;
  }
  reading.ready.push_back(index);
  if (grad != nullptr && may_be_written(work.operands[kGrad], reading.cache.overlaps)) {
    suspects.push_back(index);
  }
}

}  // namespace

const char* by_user(Reading& reading, const char* reason) {
  if (reading.whole == nullptr) reading.whole = reason;
  return reason;
}

const char* why_not_tensor(Reading& reading, const Slot& slot, const std::string& what,
                           PyObject* object) {
  if (is_data(object)) {
    throw py::type_error(name_of(reading, slot) + what + " must be a tensor, got " +
                         Py_TYPE(object)->tp_name);
  }
  return by_user(reading, "an object that only stands for a tensor");
}

// The entries mostly come in torch's order, single numbers first. Keys from a checkpoint are not
// interned, so a pointer that differs is compared as text.
void read_state(const Keys& keys, PyObject* dict, PyObject** values) {
  PyObject* const* names = keys.entries.data();
  const size_t count = keys.entries.size();
  std::fill_n(values, kMaxEntries, nullptr);
  PyObject *key, *value;
  Py_ssize_t position = 0;
  Py_ssize_t rest = PyDict_GET_SIZE(dict);
  size_t expected = keys.states.size() % count;
  for (; rest > 0 && PyDict_Next(dict, &position, &key, &value); --rest) {
    size_t k = expected;
    if (names[expected] != key) {
      k = 0;
      while (k < count && names[k] != key) ++k;
      if (k == count && PyUnicode_Check(key)) {
        k = 0;
        while (k < count && PyUnicode_Compare(key, names[k]) != 0) ++k;
      }
    }
    if (k == count) continue;
    values[k] = value;
    expected = k + 1 == count ? 0 : k + 1;
  }
}

const char* why_not_class(Reading& reading, PyObject* tensor) {
  if (is_exact(tensor)) return nullptr;
  const TensorClass is = find_class(Py_TYPE(tensor));
  if (is.known) return is.overrides == nullptr ? nullptr : by_user(reading, is.overrides);
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
  if (!holds(reading.needs.classes, type)) {
    reading.needs.classes.push_back(py::reinterpret_borrow<py::object>(type));
  }
  return "its class is to be looked at";
}

std::string name_of(const Reading& reading, const Slot& slot) {
  std::string name = "param_groups[" + std::to_string(slot.group) + "]['params'][" +
                     std::to_string(slot.index) + "]";
  PyObject* group = reading.groups[slot.group].dict;
  PyObject* names = PyDict_Check(group) ? find_text(group, "param_names") : nullptr;
  if (names != nullptr && PyList_Check(names) && slot.index < PyList_GET_SIZE(names)) {
    const std::string text = text_of(PyList_GET_ITEM(names, slot.index));
    if (!text.empty()) name += " (" + text + ")";
  }
  return name;
}

void refuse_inference(const Reading& reading, const Slot& slot, const std::string& what,
                      const c10::TensorImpl& tensor) {
  if (!is_frozen_inference(tensor)) return;
  throw std::runtime_error(name_of(reading, slot) + what +
                           " is an inference tensor: it can only be changed in inference mode");
}

void look(Reading& reading, PyObject* state, const Places& done, bool all) {
  Cache& cache = reading.cache;
  read_slots(reading);
  const bool dict = is_plain_or_default_dict(state);
  if (!dict && is_data(state)) {
    throw py::type_error(std::string("optimizer.state must be a dict, got ") +
                         Py_TYPE(state)->tp_name);
  }
  if (dict) read_states(cache, state);
  std::set<std::pair<int, int>> left_out;
  for (const auto& [group, indices] : done) {
    for (const int index : indices) left_out.emplace(group, index);
  }
  const auto count = static_cast<int>(cache.slots.size());
  bool known =
      std::exchange(cache.overlaps.known, false) && cache.works.size() == cache.slots.size();
  cache.works.resize(count);
  if (all) reading.errors.assign(count, "");
  reading.ready.reserve(count);
  std::vector<int> suspects;
  const Slot* slots = cache.slots.data();
  Work* works = cache.works.data();
  const Group* groups = reading.groups.data();
  for (int i = 0; i < count; ++i) {
    if (i + kCheckAhead < count) {
      const Slot& next = slots[i + kCheckAhead];
      prefetch_objects(groups[next.group], next, works[i + kCheckAhead]);
    }
    const Slot& slot = slots[i];
    Work& work = works[i];
    const bool was_ready = work.ready;
    work.reason = nullptr;
    work.ready = work.moved = false;
    if (left_out.empty() || left_out.count({slot.group, slot.index}) == 0) {
      try {
        look_at(reading, i, groups, slot, work, dict, all, suspects);
      } catch (const std::exception& error) {
        if (!all) throw;
        reading.errors[i] = std::string("error: ") + error.what();
      }
    }
    known = known && work.ready == was_ready && !work.moved;
  }
  cache.overlaps.known = known;
  if (reading.needs.to_learn() || reading.whole != nullptr) return;
  find_overlaps(reading, suspects);
  if (all || reading.whole != nullptr) return;
  if (done.empty() && reading.any_for_torch) {
    if (reading.patient) find_shared(reading);
    return;
  }
  find_needed_numbers(reading);
  if (reading.needs.to_learn()) return;
  if (reading.patient) {
    find_needs(reading);
  } else {
    give_up(reading);
  }
}

}  // namespace fusedopt
