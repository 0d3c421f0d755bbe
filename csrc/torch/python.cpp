// The rarer questions to Python's objects.
#include "torch/python.h"

#include <cstring>

namespace fusedopt {

namespace {

// NumPy makes its own types in C; what users derive from them is made in Python.
bool is_of_numpy(const PyTypeObject* type) {
  return std::strncmp(type->tp_name, "numpy.", 6) == 0 &&
         (type->tp_flags & Py_TPFLAGS_HEAPTYPE) == 0;
}

}  // namespace

PyObject* imported(PyObject*& kept, const char* module, const char* name) {
  if (kept != nullptr) return kept;
  py::object found = py::module_::import(module).attr(name);
  if (kept == nullptr) kept = found.release().ptr();
  return kept;
}

bool is_plain_dict(PyObject* object) {
  return PyDict_CheckExact(object) || PyODict_CheckExact(object);
}

bool is_plain_or_default_dict(PyObject* object) {
  static PyObject* kept = nullptr;
  return is_plain_dict(object) || reinterpret_cast<PyObject*>(Py_TYPE(object)) ==
                                      imported(kept, "collections", "defaultdict");
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

bool is_data(PyObject* object) {
  const PyTypeObject* type = Py_TYPE(object);
  for (const PyTypeObject* data :
       {&PyLong_Type, &PyBool_Type, &PyFloat_Type, &PyComplex_Type, &PyUnicode_Type, &PyBytes_Type,
        &PyList_Type, &PyTuple_Type, &PyDict_Type, &PySet_Type, &PyFrozenSet_Type}) {
    if (type == data) return true;
  }
  return object == Py_None || is_of_numpy(type);
}

bool has_own_arithmetic(PyObject* value) {
  const PyTypeObject* type = Py_TYPE(value);
  const PyTypeObject* base = PyFloat_Check(value)  ? &PyFloat_Type
                             : PyLong_Check(value) ? &PyLong_Type
                                                   : nullptr;
  if (is_of_numpy(type)) {  // unsigned numbers have no negatives
    return std::strncmp(type->tp_name, "numpy.uint", 10) == 0 ||
           std::strncmp(type->tp_name, "numpy.bool", 10) == 0;
  }
  if (type == base || type == &PyBool_Type || type == &PyComplex_Type) return false;
  const PyNumberMethods* own = type->tp_as_number;
  if (own == nullptr || PyWeakref_CheckProxy(value)) return false;
  if (base == nullptr) return own->nb_negative || own->nb_add || own->nb_multiply;
  const auto same = [&](auto slot) {
    return type->tp_as_number->*slot == base->tp_as_number->*slot;
  };
  using Slots = PyNumberMethods;
  return type->tp_richcompare != base->tp_richcompare || type->tp_getattro != base->tp_getattro ||
         !same(&Slots::nb_negative) || !same(&Slots::nb_positive) || !same(&Slots::nb_absolute) ||
         !same(&Slots::nb_bool) || !same(&Slots::nb_add) || !same(&Slots::nb_subtract) ||
         !same(&Slots::nb_multiply) || !same(&Slots::nb_true_divide) || !same(&Slots::nb_power) ||
         !same(&Slots::nb_float) || !same(&Slots::nb_int) || !same(&Slots::nb_index);
}

bool is_long_integer(PyObject* value) {
  if (!PyLong_Check(value)) return false;
  int overflow = 0;
  PyLong_AsLongLongAndOverflow(value, &overflow);
  return overflow != 0;
}

double number_of(PyObject* value, const std::string& name) {
  const py::object held = py::reinterpret_borrow<py::object>(value);
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
    py::raise_from(cause, PyExc_TypeError, (name + " can't be read as a number").c_str());
    throw py::error_already_set();
  }
  throw py::type_error(name + " must be a number or a tensor of one element, got " +
                       Py_TYPE(value)->tp_name);
}

}  // namespace fusedopt
