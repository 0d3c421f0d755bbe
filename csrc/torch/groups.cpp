// Reading the options of an optimizer's parameter groups.
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "torch/plan.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

struct Names {
  PyObject* betas = intern("betas");
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
  const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

}  // namespace

// A number on a device stays there: asking for it would wait for all that is queued. What depends
// on whether a number is 0 takes it for something.
template <typename Name>
void Plan::read_option(PyObject* value, Group& group, int at, const Name& name) {
  group.on_device[at] = nullptr;
  if (is_tensor(value)) {
    c10::TensorImpl& tensor = *THPVariable_Unpack(value).unsafeGetTensorImpl();
    Dtype dtype;
    if (is_number_on_device(tensor, dtype)) {
      held_.push_back(py::reinterpret_borrow<py::object>(value));
      group.on_device[at] = &tensor;
      group.any_on_device = true;
      group.numbers[at] = 1;
      return;
    }
  }
  group.numbers[at] = to_number(value, name);
}

void Plan::read_group(PyObject* dict, int index, Group& group) {
  if (!PyDict_Check(dict)) throw py::type_error(group_name(index) + " must be a dict");
  group.dict = dict;
  group.any_on_device = false;
  int count = 0;
  const char* key = nullptr;
  const auto name = [&] { return group_name(index) + "['" + key + "']"; };
  for (size_t i = 0; i < option_keys_.size(); ++i) {
    key = optimizer_->options[i];
    PyObject* value = look_up(dict, option_keys_[i]);
    if (value == nullptr) throw py::key_error(group_name(index) + " has no '" + key + "'");
    if (option_keys_[i] != names().betas) {
      read_option(value, group, count++, name);
      continue;
    }
    const auto pair = py::reinterpret_steal<py::object>(PySequence_Tuple(value));
    if (!pair) PyErr_Clear();
    if (!pair || PyTuple_GET_SIZE(pair.ptr()) != 2) {
      throw py::type_error(name() + " must be a pair");
    }
    for (int k = 0; k < 2; ++k) {
      read_option(PyTuple_GET_ITEM(pair.ptr(), k), group, count++,
                  [&] { return name() + "[" + std::to_string(k) + "]"; });
    }
  }
  for (PyObject* flag : flag_keys_) {
    group.on_device[count] = nullptr;
    group.numbers[count++] = is_true(look_up(dict, flag));
  }
  group.count = count;
  group.variant = optimizer_->variant(group.numbers);
  group.maximize = is_true(look_up(dict, names().maximize));
  PyObject* fused = look_up(dict, names().fused);
  group.fused = is_true(fused);
  PyObject* capturable = look_up(dict, names().capturable);
  group.has_capturable = capturable != nullptr;
  group.capturable = is_true(capturable);
  group.torch_only = nullptr;
  if (fused != nullptr && fused != Py_None && !group.fused) group.torch_only = "fused=False";
  if (is_true(look_up(dict, names().differentiable))) group.torch_only = "differentiable=True";
}

// First everything that may run Python code (a number's __float__, a tensor's item()), and only
// then pointers to parameters, which that code could free.
void Plan::read_groups(const py::object& groups) {
  held_.clear();
  const auto all = py::reinterpret_steal<py::object>(PySequence_Fast(groups.ptr(), ""));
  if (!all || py::isinstance<py::str>(groups)) {
    PyErr_Clear();
    throw py::type_error("param_groups must be a list of dicts");
  }
  const auto count = PySequence_Fast_GET_SIZE(all.ptr());
  for (Py_ssize_t i = 0; i < count; ++i) {
    held_.push_back(py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(all.ptr(), i)));
  }
  groups_.resize(count);
  for (int i = 0; i < static_cast<int>(count); ++i) read_group(held_[i].ptr(), i, groups_[i]);
  for (int i = 0; i < static_cast<int>(count); ++i) {
    PyObject* params = look_up(groups_[i].dict, names().params);
    held_.push_back(py::reinterpret_steal<py::object>(
        params == nullptr || is_tensor(params) ? nullptr : PySequence_Fast(params, "")));
    groups_[i].params = held_.back().ptr();
    if (groups_[i].params == nullptr) {
      PyErr_Clear();
      throw py::type_error(group_name(i) + "['params'] must be a list of tensors");
    }
  }
  // Inside torch.func's transforms and under dispatch modes an operator is not what it seems.
  const auto keys = c10::impl::tls_local_dispatch_key_set().included_;
  if (keys.has(c10::DispatchKey::Python) || keys.has(c10::DispatchKey::Functionalize) ||
      keys.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) {
    for (Group& group : groups_) group.torch_only = "a dispatch mode or a transform is active";
  }
  read_slots();
}

}  // namespace fusedopt
