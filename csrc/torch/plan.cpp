// Reading an optimizer's Python objects, at C++ speed, into groups and slots.
#include "torch/plan.h"

#include <pybind11/stl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "torch/python.h"

namespace fusedopt {

namespace {

// Runs something at the end of a scope.
template <typename Action>
struct Finally {
  Action action;
  ~Finally() { action(); }
};
template <typename Action>
Finally(Action) -> Finally<Action>;  // clang 14 needs to be told

}  // namespace

Plan::Plan(const std::string& optimizer)
    : optimizer_(find_optimizer(optimizer.c_str())), lock_(new Lock{{}, {}, getpid()}) {
  if (optimizer_ == nullptr)
    throw py::value_error("no kernels for an optimizer called " + optimizer);
  for (const char* key : optimizer_->options) option_keys_.push_back(intern(key));
  for (const char* key : optimizer_->flags) flag_keys_.push_back(intern(key));
  const auto numbers = option_keys_.size() + flag_keys_.size() +
                       std::count_if(optimizer_->options.begin(), optimizer_->options.end(),
                                     [](const char* key) { return !std::strcmp(key, "betas"); });
  if (numbers > kMaxOptions || optimizer_->keys.size() > kMaxStates) {
    throw std::logic_error("kMaxOptions or kMaxStates is too small for " + optimizer);
  }
  for (const char* key : optimizer_->keys) state_keys_.push_back(intern(key));
  step_key_ = intern("step");
  entry_keys_ = state_keys_;
  entry_keys_.push_back(step_key_);
}

void Plan::read_slots() {
  // What was read of optimizer.state is known again only if all below are the same, and no
  // exception comes between.
  const uint64_t version = std::exchange(states_version_, 0);
  size_t count = 0;
  bool same = true;  // the same parameters as in the last step, in the same places
  for (int i = 0; i < static_cast<int>(groups_.size()); ++i) {
    PyObject* params = groups_[i].params;
    const int size = static_cast<int>(PySequence_Fast_GET_SIZE(params));
    if (slots_.size() < count + size) slots_.resize(count + size);
    for (int k = 0; k < size; ++k) {
      PyObject* param = PySequence_Fast_GET_ITEM(params, k);
      if (!THPVariable_Check(param)) {
        throw py::type_error(group_name(i) + "['params'][" + std::to_string(k) +
                             "] must be a tensor, got " + Py_TYPE(param)->tp_name);
      }
      Slot& slot = slots_[count++];
      same = same && slot.param == param;
      slot = {param, slot.state, i, k};
    }
  }
  same = same && slots_.size() == count;
  slots_.resize(count);
  if (same) {
    states_version_ = version;
  } else {
    state_order_.clear();
  }
}

// Finds each slot's state without hashing a tensor (Tensor.__hash__ is Python code): the entries of
// optimizer.state are walked in order and compared with the order of the last step; if they may
// have changed at all.
void Plan::read_states(PyObject* state) {
  const uint64_t version = version_of(state);
  if (std::exchange(states_version_, version) == version && version != 0) return;
  for (Slot& slot : slots_) slot.state = nullptr;
  PyObject *key, *value;
  Py_ssize_t position = 0;
  size_t entry = 0;
  bool same = static_cast<Py_ssize_t>(state_order_.size()) == PyDict_Size(state);
  while (same && PyDict_Next(state, &position, &key, &value)) {
    const int slot = state_order_[entry++];
    if (slot < 0) {  // an entry that belonged to no parameter; a tensor may be one's by now
      same = !THPVariable_Check(key);
      continue;
    }
    same = slots_[slot].param == key;
    slots_[slot].state = value;
  }
  if (same) return;
  std::unordered_map<PyObject*, int> slot_of;
  for (size_t i = slots_.size(); i-- > 0;) {
    slots_[i].state = nullptr;
    slot_of[slots_[i].param] = static_cast<int>(i);  // the first, where a parameter is listed twice
  }
  state_order_.clear();
  position = 0;
  while (PyDict_Next(state, &position, &key, &value)) {
    const auto found = slot_of.find(key);
    const int slot = found == slot_of.end() ? -1 : found->second;
    state_order_.push_back(slot);
    if (slot >= 0) slots_[slot].state = value;
  }
}

// Which of the state keys it is, or else the step; their number if none. Keys from a checkpoint are
// not interned, so a pointer that differs is compared as text.
size_t Plan::entry_of(PyObject* key) const {
  const auto begin = entry_keys_.begin(), end = entry_keys_.end();
  auto found = std::find(begin, end, key);
  if (found == end && PyUnicode_Check(key)) {
    found = std::find_if(begin, end,
                         [&](PyObject* other) { return PyUnicode_Compare(key, other) == 0; });
  }
  return found - begin;
}

// values[k]: the object under state key k; values[keys]: the step. The entries mostly come in
// torch's order, the step first.
void Plan::read_state(PyObject* dict, PyObject** values) const {
  PyObject* const* keys = entry_keys_.data();
  const size_t step = entry_keys_.size() - 1;
  std::fill_n(values, kMaxStates + 1, nullptr);
  PyObject *key, *value;
  Py_ssize_t position = 0;
  Py_ssize_t rest = PyDict_GET_SIZE(dict);
  size_t expected = optimizer_->counts_steps ? step : 0;
  for (; rest > 0 && PyDict_Next(dict, &position, &key, &value); --rest) {
    const size_t k = keys[expected] == key ? expected : entry_of(key);
    if (k > step) continue;
    values[k] = value;
    expected = k == step ? 0 : k + 1;
  }
}

// The parameters with a gradient that torch's own step has to take, or None.
py::object Plan::torch_parameters() const {
  if (!any_for_torch_) return py::none();
  std::vector<std::pair<int, std::vector<int>>> groups;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (works_[i].reason == nullptr) continue;
    const Slot& slot = slots_[i];
    if (groups.empty() || groups.back().first != slot.group) groups.push_back({slot.group, {}});
    groups.back().second.push_back(slot.index);
  }
  return py::cast(groups);
}

// Waits for another thread that steps this optimizer without keeping the interpreter from it.
std::unique_lock<std::mutex> Plan::lock() {
  if (lock_->process != getpid()) lock_ = new Lock{{}, {}, getpid()};
  std::unique_lock<std::mutex> lock(lock_->mutex, std::try_to_lock);
  if (!lock.owns_lock()) {
    if (lock_->owner == std::this_thread::get_id()) {
      throw std::runtime_error("step() was called from within a step() of the same optimizer");
    }
    py::gil_scoped_release release;
    lock.lock();
  }
  lock_->owner = std::this_thread::get_id();
  return lock;
}

// After anything that may have run other Python code (Tensor.__hash__, the garbage collector, other
// threads), which may have done anything.
void Plan::look_again(const py::object& state, const py::object& stepped_by_torch) {
  read_slots();
  check(state, stepped_by_torch);
  find_overlaps();
}

// Where steps aren't counted, state that this step has made tells that it is the first.
void Plan::note_first_steps(const std::vector<Fresh>& made) {
  if (made.empty()) return;
  std::unordered_set<const PyObject*> first;
  for (const Fresh& fresh : made) {
    if (!fresh.step) first.insert(fresh.param.ptr());
  }
  for (const int slot : ready_) {
    Work& work = works_[slot];
    work.first = work.first || first.count(slots_[slot].param) != 0;
  }
}

py::object Plan::step(const py::object& groups, const py::object& state, const py::dict& defaults,
                      const py::object& grad_scale, const py::object& found_inf,
                      const py::object& stepped_by_torch) {
  const auto locked = lock();
  const Finally finally{[this] {
    held_.clear();
    devices_.clear();
    lock_->owner = std::thread::id();
  }};
  Scaler scaler = read_scaler(grad_scale, found_inf);
  read_groups(groups);
  check(state, stepped_by_torch);
  find_overlaps();
  if (stepped_by_torch.is_none()) {
    py::object rest = torch_parameters();
    if (!rest.is_none()) return rest;
  }
  if (read_back(scaler)) look_again(state, stepped_by_torch);
  if (scaler.overflow) return py::none();
  std::vector<Fresh> made;
  try {
    while (create_states(state, defaults, made) || (scaler.scaled && separate_gradients())) {
      look_again(state, stepped_by_torch);
    }
    note_first_steps(made);
    prepare_devices(scaler);
  } catch (...) {
    take_back(state, made);
    throw;
  }
  fill_buckets(scaler.scaled);
  sweep(scaler);
  return py::none();
}

py::list Plan::explain(const py::object& groups, const py::object& state) {
  const auto locked = lock();
  const Finally finally{[this] {
    held_.clear();
    lock_->owner = std::thread::id();
  }};
  scaled_there_ = false;
  read_groups(groups);
  std::vector<std::string> errors;
  check(state, py::none(), &errors);
  find_overlaps();
  py::list rows;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const std::string reason = works_[i].reason != nullptr ? works_[i].reason : errors[i];
    rows.append(py::make_tuple(slots_[i].group, slots_[i].index, reason));
  }
  return rows;
}

}  // namespace fusedopt
