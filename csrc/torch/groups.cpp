// Reading the options of an optimizer's parameter groups: all that may run Python code before a
// step looks at tensors.
#include "torch/groups.h"

#include <torch/csrc/Dtype.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "torch/modes.h"
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
  PyObject* stochastic_rounding = intern("stochastic_rounding");
  PyObject* master_weights = intern("master_weights");
  PyObject* state_dtype = intern("state_dtype");
  PyObject* seed = intern("seed");
};

const Names& names() {
  static const Names all;
  return all;
}

// The option's object, borrowed until the next is looked up, or null (no error set): there is none.
PyObject* look_up(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// Thrown where torch's step would run a user's code, so that torch steps all.
struct Whole {
  const char* reason;
};

bool is_true(PyObject* value) {
  if (value == nullptr || value == Py_None || value == Py_False) return false;
  if (value == Py_True) return true;
  if (is_of_users_class(value)) throw Whole{"an option is an object of a class of its own"};
  const auto held = py::reinterpret_borrow<py::object>(value);
  const int truth = PyObject_IsTrue(value);
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

bool is_plain_sequence(PyObject* object) {
  const auto iterates_as = [&](const PyTypeObject& type) {
    return PyType_IsSubtype(Py_TYPE(object), const_cast<PyTypeObject*>(&type)) &&
           Py_TYPE(object)->tp_iter == type.tp_iter;
  };
  return iterates_as(PyList_Type) || iterates_as(PyTuple_Type);
}

// The list of parameters. torch steps all if they are in anything else over which it can iterate.
PyObject* params_of(PyObject* group, int index) {
  PyObject* params = look_up(group, names().params);
  if (params != nullptr && is_plain_sequence(params)) return params;
  const bool iterates = params != nullptr && Py_TYPE(params)->tp_iter != nullptr;
  if (!iterates && (params == nullptr || is_data(params))) {
    throw py::type_error(group_name(index) +
                         " must be a dict whose 'params' are a list of tensors");
  }
  throw Whole{"its group's parameters are not in a list"};
}

// Reads how numbers are stored. torch has none of these options, so none is left to torch.
Precision read_precision(PyObject* dict, int index) {
  Precision precision{};
  PyObject* noisy = look_up(dict, names().stochastic_rounding);
  precision.noisy = is_true(noisy);
  PyObject* master = look_up(dict, names().master_weights);
  precision.master = is_true(master);
  PyObject* dtype = look_up(dict, names().state_dtype);
  precision.given = noisy != nullptr || master != nullptr || dtype != nullptr;
  if (dtype != nullptr && dtype != Py_None) {
    const auto held = py::reinterpret_borrow<py::object>(dtype);
    const bool is_dtype = THPDtype_Check(dtype);
    if (is_dtype) precision.state_dtype = reinterpret_cast<THPDtype*>(dtype)->scalar_type;
    if (!is_dtype ||
        (precision.state_dtype != at::kFloat && precision.state_dtype != at::kBFloat16)) {
      throw py::value_error(group_name(index) + "['state_dtype'] must be None, torch.float32 or " +
                            "torch.bfloat16, got " + std::string(py::repr(dtype)));
    }
  }
  PyObject* seed = precision.noisy ? look_up(dict, names().seed) : nullptr;
  if (seed == nullptr || seed == Py_None) return precision;
  if (!PyLong_Check(seed)) {
    throw py::type_error(group_name(index) + "['seed'] must be an int, got " +
                         Py_TYPE(seed)->tp_name);
  }
  precision.seed = PyLong_AsUnsignedLongLongMask(seed);
  return precision;
}

// Refuses a number whose __float__ steps the same optimizer, because reading it would never end.
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
  Reader(const Keys& keys, Groups& groups, bool wait, Sequences& sequences)
      : keys_(keys), groups_(groups), wait_(wait), sequences_(sequences) {}

  void read(PyObject* dict, int index, Group& group);

 private:
  template <typename Name>
  void read_option(PyObject* value, Group& group, int at, const Name& name);
  template <typename Name>
  py::object read_several(PyObject* value, int count, const Name& name);
  void read_numbers(int index, Group& group);

  const Keys& keys_;
  Groups& groups_;
  bool wait_;
  Sequences& sequences_;
};

// A number on a device stays there, because asking for it would wait for all that is queued. The
// choice of a kernel, which depends on whether a number is 0, takes it for 1.
template <typename Name>
void Reader::read_option(PyObject* value, Group& group, int at, const Name& name) {
  group.on_device[at] = nullptr;
  if (PyFloat_CheckExact(value)) {
    group.numbers[at] = PyFloat_AS_DOUBLE(value);
    return;
  }
  if (is_tensor(value)) {
    if (!is_exact(value)) throw Whole{"an option is a tensor subclass"};
    c10::TensorImpl& tensor = impl_of(value);
    groups_.held.push_back(py::reinterpret_borrow<py::object>(value));
    groups_.numbers.push_back(THPVariable_Unpack(value));
    group.any_tensor = true;
    const auto type = c10::typeMetaToScalarType(tensor.dtype());
    if (c10::isIntegralType(type, true) && !c10::isSignedType(type)) {
      throw Whole{"an option is an unsigned tensor, whose negative wraps around"};
    }
    Dtype dtype;
    if (is_number_on_device(tensor, dtype)) {
      group.on_device[at] = &tensor;
      group.any_on_device = true;
      group.numbers[at] = 1;
      if (!wait_) return;
    }
  } else if (has_own_arithmetic(value)) {
    throw Whole{"an option is an object of a class of its own"};
  } else if (is_long_integer(value)) {
    throw Whole{"an option is an integer of more than 64 bits"};
  }
  std::optional<ReadingNumber> reading;
  if (!PyLong_Check(value) && !PyFloat_Check(value) && !is_tensor(value)) reading.emplace(&keys_);
  group.numbers[at] = to_number(value, name);
}

template <typename Name>
py::object Reader::read_several(PyObject* value, int count, const Name& name) {
  py::object several;
  if (is_plain_sequence(value)) {
    // A list's numbers may shorten it while they are read, and finalisers while it is copied.
    const WithoutCollections borrowing;
    several = PyList_Check(value) ? py::reinterpret_steal<py::object>(PyList_AsTuple(value))
                                  : py::reinterpret_borrow<py::object>(value);
  } else {
    const auto read = [&](const auto& sequence) { return sequence.first.ptr() == value; };
    const auto found = std::find_if(sequences_.begin(), sequences_.end(), read);
    if (found != sequences_.end()) return found->second;
    if (PyIter_Check(value)) throw Whole{"an option is an iterator"};
    const auto held = py::reinterpret_borrow<py::object>(value);
    several = py::reinterpret_steal<py::object>(PySequence_Tuple(value));
    if (!several) PyErr_Clear();
    if (several) sequences_.emplace_back(held, several);
  }
  if (!several || PySequence_Fast_GET_SIZE(several.ptr()) != count) {
    throw py::type_error(name() + " must be " + (count == 2 ? "a pair" : "a triple"));
  }
  return several;
}

void Reader::read_numbers(int index, Group& group) {
  for (size_t i = 0; i < keys_.options.size(); ++i) {
    const Option& option = keys_.optimizer->options[i];
    PyObject* value = look_up(group.dict, keys_.options[i]);
    if (option.kind == Option::kFlag) {
      group.on_device[option.at[0]] = nullptr;
      group.numbers[option.at[0]] = is_true(value);
      continue;
    }
    const auto name = [&] { return group_name(index) + "['" + option.key + "']"; };
    if (value == nullptr) throw py::key_error(group_name(index) + " has no '" + option.key + "'");
    if (option.kind == Option::kNumber) {
      read_option(value, group, option.at[0], name);
      continue;
    }
    const py::object several = read_several(value, option.count(), name);
    for (int k = 0; k < option.count(); ++k) {
      read_option(PySequence_Fast_GET_ITEM(several.ptr(), k), group, option.at[k],
                  [&] { return name() + "[" + std::to_string(k) + "]"; });
    }
  }
}

void Reader::read(PyObject* dict, int index, Group& group) {
  group = {};
  group.dict = dict;
  if (!is_plain_dict(dict)) {
    if (!is_data(dict) || PyDict_Check(dict)) throw Whole{"its group is not a plain dict"};
    throw py::type_error(group_name(index) + " must be a dict, got " + Py_TYPE(dict)->tp_name);
  }
  group.params = params_of(dict, index);
  groups_.held.push_back(py::reinterpret_borrow<py::object>(group.params));
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
  group.precision = read_precision(dict, index);
  group.operands = kFirstState + group.variant.cpu->states + (group.precision.master ? 1 : 0);
  group.scalars = keys_.optimizer->scalars.size();
  if (group.scalars == 0 && group.precision.noisy) group.scalars = 1;
  group.held = group.operands + static_cast<int>(group.scalars);
  if (is_true(look_up(dict, names().differentiable))) group.torch_only = "differentiable=True";
  const int states = group.variant.cpu->states;
  std::copy_n(group.variant.keys, states, group.entries + kFirstState);
  if (group.precision.master) group.entries[kFirstState + states] = keys_.remainder();
  for (size_t k = 0; k < group.scalars; ++k) group.entries[group.operands + k] = keys_.scalar(k);
  static_assert(alignof(cpu::Kernel) > 7);  // room for the kind's bits
  group.way = group.torch_only != nullptr
                  ? 0
                  : reinterpret_cast<uintptr_t>(group.variant.cpu) + group.precision.kind();
}

}  // namespace

Keys::Keys(const std::string& name) : optimizer(find_optimizer(name.c_str())) {
  if (optimizer == nullptr) throw py::value_error("no kernels for an optimizer called " + name);
  for (const Option& option : optimizer->options) options.push_back(intern(option.key));
  for (const State& state : optimizer->states) states.push_back(intern(state.key));
  entries = states;
  for (const State& scalar : optimizer->scalars) entries.push_back(intern(scalar.key));
  if (optimizer->scalars.empty()) entries.push_back(intern(kRoundings));
  entries.push_back(intern(kRemainder));
}

Groups read_groups(const Keys& keys, const py::object& groups, bool wait, Sequences& sequences) {
  Groups found;
  try {
    if (const char* reason = why_transformed()) throw Whole{reason};
    if (!is_plain_sequence(groups.ptr())) {
      if (is_data(groups.ptr())) throw py::type_error("param_groups must be a list of dicts");
      throw Whole{"param_groups is not a list"};
    }
    const auto count = PySequence_Fast_GET_SIZE(groups.ptr());
    found.held.reserve(2 * count);
    for (Py_ssize_t i = 0; i < count; ++i) {
      found.held.push_back(
          py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(groups.ptr(), i)));
    }
    found.all.resize(count);
    Reader reader(keys, found, wait, sequences);
    for (int i = 0; i < static_cast<int>(count); ++i) {
      reader.read(found.held[i].ptr(), i, found.all[i]);
    }
  } catch (const Whole& whole) {
    found.whole = whole.reason;
  }
  return found;
}

}  // namespace fusedopt
