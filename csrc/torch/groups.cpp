// Reading the options of an optimizer's parameter groups: all that may run Python code before a
// step looks at tensors.
#include "torch/groups.h"

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "torch/operand.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

struct Names {
  PyObject* params = intern("params");
  PyObject* maximize = intern("maximize");
  PyObject* differentiable = intern("differentiable");
  PyObject* fused = intern("fused");
  PyObject* capturable = intern("capturable");
};

const Names& names() {
  static const Names all;
  return all;
}

// The option's object, or null (no error set) if the group has none.
PyObject* look_up(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

bool is_true(PyObject* value) {
  if (value == nullptr || value == Py_None || value == Py_False) return false;
  if (value == Py_True) return true;
  const py::object held = py::reinterpret_borrow<py::object>(value);
  const int truth = PyObject_IsTrue(value);
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

// A list's or tuple's items, or those that its class's __iter__ gives; null: it has none.
py::object items_of(PyObject* sequence) {
  if (sequence == nullptr || is_tensor(sequence)) return {};
  auto items = PyList_CheckExact(sequence) || PyTuple_CheckExact(sequence)
                   ? py::reinterpret_borrow<py::object>(sequence)
                   : py::reinterpret_steal<py::object>(PySequence_List(sequence));
  if (!items) PyErr_Clear();
  return items;
}

py::object params_of(PyObject* group, int index) {
  const auto params =
      PyDict_CheckExact(group)
          ? py::reinterpret_borrow<py::object>(look_up(group, names().params))
          : py::reinterpret_steal<py::object>(PyObject_GetItem(group, names().params));
  if (!params) PyErr_Clear();
  py::object items = items_of(params.ptr());
  if (!items) {
    throw py::type_error(group_name(index) +
                         " must be a dict whose 'params' are a list of tensors");
  }
  return items;
}

// A number whose __float__ steps the same optimizer would be read without end.
class ReadingNumber {
 public:
  explicit ReadingNumber(const Keys* keys) : before_(current_) {
    if (before_ == keys) {
      throw std::runtime_error("step() was called from within a step() of the same optimizer");
    }
    current_ = keys;
  }
  ~ReadingNumber() { current_ = before_; }
  ReadingNumber(const ReadingNumber&) = delete;

 private:
  static thread_local const Keys* current_;
  const Keys* before_;
};
thread_local const Keys* ReadingNumber::current_ = nullptr;

class Reader {
 public:
  Reader(const Keys& keys, Groups& groups, bool wait) : keys_(keys), groups_(groups), wait_(wait) {}

  void read(PyObject* dict, int index, Group& group);

 private:
  template <typename Name>
  void read_option(PyObject* value, Group& group, int at, const Name& name);
  void read_numbers(int index, Group& group);

  const Keys& keys_;
  Groups& groups_;
  bool wait_;
};

// A number on a device stays there: asking for it would wait for all that is queued. What depends
// on whether a number is 0 takes it for something.
template <typename Name>
void Reader::read_option(PyObject* value, Group& group, int at, const Name& name) {
  group.on_device[at] = nullptr;
  if (PyFloat_CheckExact(value)) {
    group.numbers[at] = PyFloat_AS_DOUBLE(value);
    return;
  }
  if (has_own_arithmetic(value)) group.torch_only = "an option's class has its own arithmetic";
  if (is_tensor(value)) {
    if (!is_exact(value)) group.torch_only = "an option is a tensor subclass";
    c10::TensorImpl& tensor = impl_of(value);
    Dtype dtype;
    if (is_number_on_device(tensor, dtype)) {
      groups_.held.push_back(py::reinterpret_borrow<py::object>(value));
      group.on_device[at] = &tensor;
      group.any_on_device = true;
      group.numbers[at] = 1;
      if (!wait_) return;
    }
  }
  std::optional<ReadingNumber> reading;
  if (!PyLong_Check(value) && !PyFloat_Check(value) && !is_tensor(value)) reading.emplace(&keys_);
  group.numbers[at] = to_number(value, name);
}

void Reader::read_numbers(int index, Group& group) {
  for (size_t i = 0; i < keys_.options.size(); ++i) {
    const Option& option = keys_.optimizer->options[i];
    PyObject* value = look_up(group.dict, keys_.options[i]);
    if (option.kind == Option::kFlag) {
      group.on_device[option.at] = nullptr;
      group.numbers[option.at] = is_true(value);
      continue;
    }
    const auto name = [&] { return group_name(index) + "['" + option.key + "']"; };
    if (value == nullptr) throw py::key_error(group_name(index) + " has no '" + option.key + "'");
    if (option.kind == Option::kNumber) {
      read_option(value, group, option.at, name);
      continue;
    }
    const py::object held = py::reinterpret_borrow<py::object>(value);
    const auto pair = py::reinterpret_steal<py::object>(PySequence_Tuple(value));
    if (!pair) PyErr_Clear();
    if (!pair || PyTuple_GET_SIZE(pair.ptr()) != 2) {
      throw py::type_error(name() + " must be a pair");
    }
    for (int k = 0; k < 2; ++k) {
      read_option(PyTuple_GET_ITEM(pair.ptr(), k), group, k == 0 ? option.at : option.second,
                  [&] { return name() + "[" + std::to_string(k) + "]"; });
    }
  }
}

void Reader::read(PyObject* dict, int index, Group& group) {
  group = {};
  group.dict = dict;
  if (!is_plain_dict(dict)) {
    group.torch_only = "its group is not a plain dict";
    return;
  }
  read_numbers(index, group);
  group.variant = keys_.optimizer->variant(group.numbers);
  group.maximize = is_true(look_up(dict, names().maximize));
  PyObject* fused = look_up(dict, names().fused);
  const bool chosen = fused != nullptr && fused != Py_None;
  group.fused = is_true(fused);
  PyObject* capturable = look_up(dict, names().capturable);
  group.has_capturable = capturable != nullptr;
  group.capturable = is_true(capturable);
  if (chosen && !group.fused) group.torch_only = "fused=False";
  if (is_true(look_up(dict, names().differentiable))) group.torch_only = "differentiable=True";
}

// Inside torch.func's transforms and under dispatch modes an operator is not what it seems.
bool is_transformed() {
  const auto keys = c10::impl::tls_local_dispatch_key_set().included_;
  return keys.has(c10::DispatchKey::Python) || keys.has(c10::DispatchKey::Functionalize) ||
         keys.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

}  // namespace

Keys::Keys(const std::string& name) : optimizer(find_optimizer(name.c_str())) {
  if (optimizer == nullptr) throw py::value_error("no kernels for an optimizer called " + name);
  for (const Option& option : optimizer->options) options.push_back(intern(option.key));
  for (const char* key : optimizer->keys) states.push_back(intern(key));
  step = intern("step");
  entries = states;
  entries.push_back(step);
}

Groups read_groups(const Keys& keys, const py::object& groups, bool wait) {
  Groups found;
  const py::object all = py::isinstance<py::str>(groups) ? py::object() : items_of(groups.ptr());
  if (!all) throw py::type_error("param_groups must be a list of dicts");
  const auto count = PySequence_Fast_GET_SIZE(all.ptr());
  found.held.reserve(2 * count);
  for (Py_ssize_t i = 0; i < count; ++i) {
    found.held.push_back(
        py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(all.ptr(), i)));
  }
  found.all.resize(count);
  Reader reader(keys, found, wait);
  for (int i = 0; i < static_cast<int>(count); ++i) {
    reader.read(found.held[i].ptr(), i, found.all[i]);
  }
  for (int i = 0; i < static_cast<int>(count); ++i) {
    found.held.push_back(params_of(found.all[i].dict, i));
    found.all[i].params = found.held.back().ptr();
  }
  if (is_transformed()) {
    for (Group& group : found.all) group.torch_only = "a dispatch mode or a transform is active";
  }
  return found;
}

}  // namespace fusedopt
