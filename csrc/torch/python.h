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

// Keeps Python from collecting garbage. Up to 3.11 any new object may start a collection, even the
// empty dict that a tensor gets when its dict is asked for; and a collection runs finalisers, which
// may give the interpreter's lock to other threads. From 3.12 on Python collects between two of its
// own instructions only.
class WithoutCollections {
 public:
#if PY_VERSION_HEX < 0x030C0000
  WithoutCollections() : enabled_(PyGC_Disable()) {}
  ~WithoutCollections() {
    if (enabled_ != 0) PyGC_Enable();
  }

 private:
  int enabled_;
#else
  WithoutCollections() {}
#endif
  WithoutCollections(const WithoutCollections&) = delete;
};

// The number that says which state a class is in; 0: the class has none at the moment.
inline unsigned version_of_class(PyTypeObject* type) {
#if PY_VERSION_HEX < 0x030C0000
  if (!PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG)) return 0;
#endif
  return type->tp_version_tag;
}

inline std::string group_name(int group) { return "param_groups[" + std::to_string(group) + "]"; }

// torch.Tensor and torch.nn.Parameter, read once: torch's own variables take two loads each.
inline PyTypeObject* const kTensorType = reinterpret_cast<PyTypeObject*>(THPVariableClass);
inline PyTypeObject* const kParameterType = reinterpret_cast<PyTypeObject*>(ParameterClass);

// Is the object's class one of these two, and nothing derived from them?
inline bool is_exact(PyObject* object) {
  return Py_TYPE(object) == kTensorType || Py_TYPE(object) == kParameterType;
}

// Asks the object's real type. torch's THPVariable_Check believes the object's __class__, which
// proxies and mocks make up, and runs Python code.
inline bool is_tensor(PyObject* object) {
  return is_exact(object) || PyType_IsSubtype(Py_TYPE(object), kTensorType);
}

inline c10::TensorImpl& impl_of(PyObject* tensor) {
  return *THPVariable_Unpack(tensor).unsafeGetTensorImpl();
}

inline py::object attribute_of(PyObject* object, PyObject* name) {
  auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, name));
  if (!value) throw py::error_already_set();
  return value;
}

// A module's attribute, which is kept from the first call on. No static initialiser: an import may
// hand the interpreter's lock to another thread, which would wait for the initialiser and keep the
// lock, and a finaliser may come here again.
PyObject* imported(PyObject*& kept, const char* module, const char* name);

// Is the object a dict or an OrderedDict, and of no class that a user derives from them?
bool is_plain_dict(PyObject* object);

// Is the object a plain dict, or a defaultdict, as optimizer.state is?
bool is_plain_or_default_dict(PyObject* object);

// The text of a str, without running Python code; anything else gives an empty one.
std::string text_of(PyObject* object);

// The value under a key that is text, found without running Python code; null: there is none.
PyObject* find_text(PyObject* dict, const char* key);

// Is the object of one of Python's own types that only hold data, such as None, a number, a str, a
// dict? Another object may have the methods of a tensor or a number, which torch's step would call.
bool is_data(PyObject* object);

// Is the object's class made in Python, other than torch.Tensor and Parameter?
inline bool is_of_users_class(PyObject* object) {
  return PyType_HasFeature(Py_TYPE(object), Py_TPFLAGS_HEAPTYPE) && !is_exact(object);
}

// May torch's step get other results from an object than from the object's value as a float? Not
// from a number of Python's or numpy's, from a class derived from float or int that leaves their
// operators alone, from a weak reference's proxy, or from an object without operators, which has
// only a __float__.
bool has_own_arithmetic(PyObject* value);

// Is the object an int for which torch's operators have no room?
bool is_long_integer(PyObject* value);

double number_of(PyObject* value, const std::string& name);

// The value of a float, of anything of Python's or numpy's that becomes a float, or of a tensor of
// one element. `name` makes the option's name for the message.
template <typename Name>
double to_number(PyObject* value, const Name& name) {
  if (PyFloat_Check(value)) return PyFloat_AS_DOUBLE(value);
  if (PyLong_Check(value)) {
    const double number = PyLong_AsDouble(value);
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    return number;
  }
  return number_of(value, name());
}

}  // namespace fusedopt
