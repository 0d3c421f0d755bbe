// The loop of a step: look, satisfy, look again; then build, count, sweep.
#include "torch/plan.h"

#include <pybind11/stl.h>
#include <unistd.h>

#include <optional>
#include <stdexcept>
#include <unordered_set>
#include <utility>

#include "torch/count.h"
#include "torch/launch.h"
#include "torch/look.h"
#include "torch/norm.h"
#include "torch/python.h"
#include "torch/satisfy.h"

namespace fusedopt {

namespace {

// How often a step looks again before it gives up, because its objects don't stay as they are.
constexpr int kMostRounds = 20;
constexpr const char* kChangedByTorch = "the optimizer changed while torch's own step ran: ";
// How often a step provides what is missing before it leaves the parameters to torch's own step.
constexpr int kPatience = 2;

Done done_of(const py::object& params) {
  Done done;
  if (params.is_none()) return done;
  for (const py::handle param : params.cast<py::list>()) done.add(param.ptr());
  return done;
}

// The parameters that torch's own step has to take: those with a reason, or all that it hasn't
// `done`.
std::vector<Part> parts_for_torch(const Reading& reading, Done done) {
  std::vector<Part> parts;
  for (size_t i = 0; i < reading.slots().size(); ++i) {
    const Slot& slot = reading.slots()[i];
    const bool left =
        reading.whole != nullptr ? !done.take(slot.param) : reading.works()[i].reason != nullptr;
    if (!left) continue;
    if (parts.empty() || std::get<int>(parts.back()) != slot.group) {
      PyObject* group = reading.groups[slot.group].dict;
      parts.push_back({slot.group, py::reinterpret_borrow<py::object>(group), {}});
    }
    auto& params = std::get<2>(parts.back());
    params.emplace_back(slot.index, py::reinterpret_borrow<py::object>(slot.param));
  }
  return parts;
}

// May another thread run without the interpreter's lock, as autograd does, and replace gradients?
bool has_other_threads() {
  PyThreadState* first = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
  return first == nullptr || PyThreadState_Next(first) != nullptr;
}

void note_norm(const py::object& optimizer, const GradNorm& norm) {
  const py::object tensor = tensor_with(norm.value, norm.in_double);
  const auto dict =
      py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer.ptr(), nullptr));
  static PyObject* const name = intern("grad_norm");
  if (!dict || PyDict_SetItem(dict.ptr(), name, tensor.ptr()) != 0) throw py::error_already_set();
}

// Where steps aren't counted, state that was made just now tells that this is the first step.
void note_first_steps(Reading& reading, const std::vector<Fresh>& made) {
  if (made.empty()) return;
  std::unordered_set<const PyObject*> first;
  for (const Fresh& fresh : made) {
    if (fresh.states && fresh.placed) first.insert(fresh.param.ptr());
  }
  for (const int slot : reading.ready) {
    Work& work = reading.cache.works[slot];
    work.first = work.first || first.count(reading.slots()[slot].param) != 0;
  }
}

}  // namespace

// A parameter's place, and what explain() says of it.
struct Plan::Row {
  int group;
  int index;
  std::string reason;
};

// One call of step() or explain(): what it was given, and what it owns until its end.
struct Plan::Call {
  const py::object& optimizer;
  const Done done;
  bool explain;
  Scaler scaler;
  std::optional<double> max_grad_norm = {};

  py::object groups = {};  // the optimizer's, once it is known that asking for them is harmless
  py::object state = {};
  Owned owned = {};
  Sequences sequences = {};
  bool waited = false;  // for numbers on a device
  Groups read = {};
  Needs needs = {};
  std::vector<Fresh> made = {};
  std::vector<Part> for_torch = {};
  std::optional<GradNorm> norm = {};
  std::vector<Row> rows = {};

  void add_rows(const Reading& reading);
  void add_rows(const char* reason);
};

void Plan::Call::add_rows(const Reading& reading) {
  for (size_t i = 0; i < reading.slots().size(); ++i) {
    const Slot& slot = reading.slots()[i];
    const char* own = reading.works()[i].reason;
    std::string reason = own != nullptr ? own : reading.errors[i];
    if (reason.empty() && reading.whole != nullptr) {
      reason = std::string("another parameter is for torch's step alone: ") + reading.whole;
    }
    rows.push_back({slot.group, slot.index, reason});
  }
}

// The same reason for all parameters that can be found without running a user's code.
void Plan::Call::add_rows(const char* reason) {
  if (!groups) groups = optimizer.attr("param_groups");
  if (!PyList_Check(groups.ptr())) return;
  for (int i = 0; i < static_cast<int>(PyList_GET_SIZE(groups.ptr())); ++i) {
    PyObject* group = PyList_GET_ITEM(groups.ptr(), i);
    PyObject* params = PyDict_Check(group) ? find_text(group, "params") : nullptr;
    if (params == nullptr || !PyList_Check(params)) continue;
    for (int k = 0; k < static_cast<int>(PyList_GET_SIZE(params)); ++k) {
      rows.push_back({i, k, reason});
    }
  }
}

Plan::Plan(const std::string& optimizer)
    : keys_(optimizer), original_(find_original(optimizer)), lock_(new Lock{{}, getpid()}) {
  is_plain_or_default_dict(Py_None);  // imports what it needs
}

// Waits for another thread that steps this optimizer without keeping the interpreter from it. No
// Python code runs under this lock. After a fork the child gets another: the parent's may be held.
std::unique_lock<std::mutex> Plan::lock() {
  if (lock_->process != getpid()) {
    lock_.release();
    lock_.reset(new Lock{{}, getpid()});
  }
  std::unique_lock<std::mutex> lock(lock_->mutex, std::try_to_lock);
  if (!lock.owns_lock()) {
    const py::gil_scoped_release release;
    lock.lock();
  }
  return lock;
}

// Reads the groups. Returns why torch's own step takes everything, or null. What was read and
// needed before is let go first, which may run Python code.
const char* Plan::read(Call& call) {
  call.needs = {};
  call.read = {};
  if (const char* reason = why_not_original(original_, call.optimizer.ptr())) return reason;
  if (!call.groups) {
    call.state = attribute_of(call.optimizer.ptr(), keys_.state);
    call.groups = attribute_of(call.optimizer.ptr(), keys_.param_groups);
  }
  call.read = read_groups(keys_, call.groups, call.waited, call.sequences);
  return call.read.whole;
}

// Looks at everything, and steps if nothing is needed for that.
Plan::Outcome Plan::look_once(Call& call, bool patient) {
  if (const char* whole = read(call)) {
    if (call.explain) call.add_rows(whole);
    if (!call.done.empty()) throw std::runtime_error(kChangedByTorch + std::string(whole));
    if (call.scaler.overflow) return Outcome::kDone;
    return Outcome::kAllForTorch;
  }
  const auto locked = lock();
  Reading reading{keys_,       call.read,   cache_,  call.owned,         call.needs,
                  call.scaler, call.waited, patient, has_other_threads()};
  look(reading, call.state.ptr(), call.done, call.explain);
  if (call.needs.to_learn()) return Outcome::kAgain;
  if (call.explain) {
    call.add_rows(reading);
    return Outcome::kDone;
  }
  if (call.scaler.overflow) return Outcome::kDone;
  if (reading.whole != nullptr && call.done.empty()) return Outcome::kAllForTorch;
  if (reading.any_for_torch && call.max_grad_norm) return Outcome::kForNorm;
  if (call.needs.to_provide()) return Outcome::kAgain;
  if (reading.whole != nullptr || reading.any_for_torch) {
    if (reading.whole == nullptr) build(reading, tables_);  // refuses before torch changes anything
    call.for_torch = parts_for_torch(reading, call.done);
    return call.for_torch.empty() ? Outcome::kDone : Outcome::kForTorch;
  }
  if (call.max_grad_norm) {
    call.norm = grad_norm(reading);
    if (!call.norm) return Outcome::kForNorm;
    call.scaler.clip =
        clip_coefficient(*call.max_grad_norm, call.norm->value, call.norm->in_double);
  }
  note_first_steps(reading, call.made);
  prepare_devices(reading);
  build(reading, tables_);
  count(reading, tables_.counts);
  sweep(reading, tables_);
  return Outcome::kDone;
}

py::object Plan::step(const py::object& optimizer, const py::tuple& scaler,
                      const py::object& stepped_by_torch, const py::object& max_grad_norm,
                      const py::object& clip) {
  Call call{optimizer, done_of(stepped_by_torch), false, read_scaler(scaler[0], scaler[1], clip)};
  if (!max_grad_norm.is_none()) {
    call.max_grad_norm =
        to_number(max_grad_norm.ptr(), [] { return std::string("max_grad_norm"); });
  }
  std::vector<Fresh>& made = call.made;
  int provided = 0;
  try {
    for (int round = 0; round < kMostRounds; ++round) {
      const Outcome outcome = look_once(call, provided < kPatience);
      if (outcome == Outcome::kDone) {
        if (call.norm) note_norm(optimizer, *call.norm);
        return py::none();
      }
      if (outcome != Outcome::kAgain) {
        take_back(call.state, made);
        if (outcome == Outcome::kForNorm || call.max_grad_norm) return py::bool_(false);
        return outcome == Outcome::kForTorch ? py::cast(call.for_torch) : py::bool_(true);
      }
      if (call.needs.numbers) {
        read_back(call.scaler);
        call.waited = true;
      }
      if (call.needs.to_learn()) {
        learn(call.needs, cache_);
      } else {
        provide(keys_, call.needs, call.state, optimizer, made);
        ++provided;
      }
    }
    throw std::runtime_error("the optimizer's objects change whenever step() looks at them");
  } catch (const ZeroDivision& error) {
    take_back(call.state, made);
    PyErr_SetString(PyExc_ZeroDivisionError, error.what());
    throw py::error_already_set();
  } catch (...) {
    take_back(call.state, made);
    throw;
  }
}

py::list Plan::explain(const py::object& optimizer) {
  Call call{optimizer, {}, true, {}};
  for (int round = 0; look_once(call, true) == Outcome::kAgain; ++round) {
    if (round == kMostRounds) throw std::runtime_error("the optimizer's objects keep changing");
    learn(call.needs, cache_);
  }
  py::list rows;
  for (const Row& row : call.rows) {
    rows.append(py::make_tuple(row.group, row.index, row.reason));
  }
  return rows;
}

}  // namespace fusedopt
