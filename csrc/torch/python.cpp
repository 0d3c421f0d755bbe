// The rarer questions to Python's objects.
#include "torch/python.h"

#include <cstring>

namespace fusedopt {

bool is_plain_dict(PyObject* object) {
  static PyObject* const defaultdict =
      py::object(py::module_::import("collections").attr("defaultdict")).release().ptr();
  return PyDict_CheckExact(object) || reinterpret_cast<PyObject*>(Py_TYPE(object)) == defaultdict ||
         PyODict_CheckExact(object);
}

std::string text_of(PyObject* object) {
  const char* text = PyUnicode_Check(object) ? PyUnicode_AsUTF8(object) : nullptr;
  if (text == nullptr) PyErr_Clear();
  return text == nullptr ? "" : text;
}

PyObject* find_text(PyObject* dict, const char* key) {
  PyObject *found, *value;
  Py_ssize_t position = 0;
  while (PyDict_Next(dict, &position, &found, &value)) {
    if (PyUnicode_CheckExact(found) && PyUnicode_CompareWithASCIIString(found, key) == 0) {
      return value;
    }
  }
  return nullptr;
}

bool has_own_arithmetic(PyObject* value) {
  const PyTypeObject* type = Py_TYPE(value);
  const PyTypeObject* base = PyFloat_Check(value)  ? &PyFloat_Type
                             : PyLong_Check(value) ? &PyLong_Type
                                                   : nullptr;
  if (base == nullptr || type == base || type->tp_as_number == nullptr) return false;
  const auto differs = [&](auto slot) {
    return type->tp_as_number->*slot != base->tp_as_number->*slot;
  };
  return std::strncmp(type->tp_name, "numpy.", 6) != 0 &&
         (differs(&PyNumberMethods::nb_negative) || differs(&PyNumberMethods::nb_add) ||
          differs(&PyNumberMethods::nb_subtract) || differs(&PyNumberMethods::nb_multiply) ||
          differs(&PyNumberMethods::nb_true_divide) || differs(&PyNumberMethods::nb_power) ||
          differs(&PyNumberMethods::nb_float));
}

}  // namespace fusedopt
