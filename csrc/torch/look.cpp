// Looking at each parameter. Runs no Python code; writes the cache.
#include "torch/look.h"

#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <stdexcept>

#include "engine/tuning.h"
#include "torch/classes.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

bool holds(const std::vector<py::object>& objects, PyObject* object) {
  return std::any_of(objects.begin(), objects.end(),
                     [&](const py::object& held) { return held.ptr() == object; });
}

// That a gradient is owned takes 17 ns for each of 1000 tensors on an EPYC Milan (2026-11-25,
// medians of 30 rounds); to lock the node that accumulates it as well, 95.
FUSEDOPT_INLINE c10::TensorImpl* read_gradient(Reading& reading, PyObject* param) {
  // TensorImpl::grad() makes two calls to learn the same.
  const auto* meta =
      static_cast<const torch::autograd::AutogradMeta*>(impl_of(param).autograd_meta());
  if (meta == nullptr || !meta->grad_.defined()) return nullptr;
  if (!reading.owning) return meta->grad_.unsafeGetTensorImpl();
  reading.owned.gradients.push_back(meta->grad_.getIntrusivePtr());
  c10::TensorImpl* gradient = reading.owned.gradients.back().get();
  return gradient == c10::UndefinedTensorImpl::singleton() ? nullptr : gradient;
}

// Has the parameter no gradient, and a class that lets torch see that?
bool is_passed_over(PyObject* param) {
  const TensorClass is = find_class(Py_TYPE(param));
  const auto* meta =
      static_cast<const torch::autograd::AutogradMeta*>(impl_of(param).autograd_meta());
  return is.known && is.has_grad && (meta == nullptr || !meta->grad_.defined());
}

// Checks a slot in which something has changed. Returns whether a kernel takes the parameter.
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
  c10::TensorImpl* grad = read_gradient(reading, slot.param);
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

// Looks at all parameters but those that torch has `done`. Returns the suspects.
std::vector<int> look_at_all(Reading& reading, bool dict, Done done, bool all) {
  Cache& cache = reading.cache;
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
    if (done.empty() || !done.take(slot.param)) {
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
  return suspects;
}

}  // namespace

c10::TensorImpl* gradient_of(Reading& reading, PyObject* param) {
  return read_gradient(reading, param);
}

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

void look(Reading& reading, PyObject* state, const Done& done, bool all) {
  const WithoutCollections borrowing;
  read_slots(reading);
  const bool dict = is_plain_or_default_dict(state);
  if (!dict && is_data(state)) {
    throw py::type_error(std::string("optimizer.state must be a dict, got ") +
                         Py_TYPE(state)->tp_name);
  }
  if (dict) read_states(reading.cache, state);
  const std::vector<int> suspects = look_at_all(reading, dict, done, all);
  if (reading.needs.to_learn() || reading.whole != nullptr) return;
  find_overlaps(reading, suspects);
  if (all || reading.whole != nullptr) return;
  if (reading.scaler.clip_elsewhere != nullptr && !reading.ready.empty()) {
    reading.needs.numbers = true;  // known, or refused, before torch's step changes anything
    return;
  }
  if (reading.any_for_torch) {
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
