// Small things between Python's objects and ours.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>

#include <string>

namespace fusedopt {

namespace py = pybind11;

inline PyObject* intern(const char* text) {
  PyObject* string = PyUnicode_InternFromString(text);  // kept for as long as the process lives
  if (string == nullptr) throw py::error_already_set();
  return string;
}

// The state that a dict is in: a number that neither this dict in another state nor any other dict
// ever has, so that what was read of it needn't be read again. 0 where Python doesn't keep one
// (from 3.14 on), or not for this dict: an object's attributes may change without.
inline uint64_t version_of(PyObject* dict) {
#if PY_VERSION_HEX < 0x030E0000
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  const auto* table = reinterpret_cast<const PyDictObject*>(dict);
  return table->ma_values == nullptr ? table->ma_version_tag : 0;
#pragma GCC diagnostic pop
#else
  return 0;
#endif
}

inline std::string group_name(int group) { return "param_groups[" + std::to_string(group) + "]"; }

// torch.Tensor and torch.nn.Parameter, read once: torch's own variables take two loads each.
inline PyTypeObject* const kTensorType = reinterpret_cast<PyTypeObject*>(THPVariableClass);
inline PyTypeObject* const kParameterType = reinterpret_cast<PyTypeObject*>(ParameterClass);

// One of these, and nothing derived from it?
inline bool is_exact(PyObject* object) {
  return Py_TYPE(object) == kTensorType || Py_TYPE(object) == kParameterType;
}

// By the object's real type. torch's THPVariable_Check believes its __class__, which proxies and
// mocks make up, and it runs Python code.
inline bool is_tensor(PyObject* object) {
  return is_exact(object) || PyType_IsSubtype(Py_TYPE(object), kTensorType);
}

inline c10::TensorImpl& impl_of(PyObject* tensor) {
  return *THPVariable_Unpack(tensor).unsafeGetTensorImpl();
}

// A dict that nobody's class makes behave otherwise: a dict, a defaultdict or an OrderedDict.
bool is_plain_dict(PyObject* object);

// The text of a str, without running Python code; anything else gives an empty one.
std::string text_of(PyObject* object);

// The value under a key that is text, found without running Python code; null: there is none.
PyObject* find_text(PyObject* dict, const char* key);

// Is it a number of Python's or numpy's whose arithmetic a class of the user's replaces?
bool has_own_arithmetic(PyObject* value);

// A float, anything that becomes one, or a tensor of one element. `name` makes its name for the
// message.
template <typename Name>
double to_number(PyObject* value, const Name& name) {
  if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
  const py::object held = py::reinterpret_borrow<py::object>(value);
  if (PyFloat_Check(value)) return PyFloat_AS_DOUBLE(value);
  if (is_tensor(value)) {
    const at::Tensor tensor = THPVariable_Unpack(value);
    if (tensor.numel() == 1 && !tensor.is_complex() && !tensor.is_meta()) {
      if (tensor.is_cpu()) return tensor.item().toDouble();
      const py::gil_scoped_release release;  // it may wait for long
      return tensor.item().toDouble();
    }
  } else if (PyNumber_Check(value) && !PyComplex_Check(value)) {
    const py::object number = py::reinterpret_steal<py::object>(PyNumber_Float(value));
    if (number) return PyFloat_AS_DOUBLE(number.ptr());
    py::error_already_set cause;
    py::raise_from(cause, PyExc_TypeError, (name() + " can't be read as a number").c_str());
    throw py::error_already_set();
  }
  throw py::type_error(name() + " must be a number or a tensor of one element, got " +
                       Py_TYPE(value)->tp_name);
}

}  // namespace fusedopt
