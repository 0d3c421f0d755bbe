// Attributes of classes and functions of modules, as they were when they were noted: reads
// namespaces, and runs no Python code.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "torch/dicts.h"
#include "torch/python.h"

namespace fusedopt {

using Entries = std::vector<std::pair<PyObject*, py::object>>;

// Is it the original, or torch.compile's wrapper around one of torch.optim's functions?
inline bool is_same(PyObject* found, const py::object& original) {
  if (found == original.ptr()) return true;
  if (found == nullptr || !PyFunction_Check(found)) return false;
  PyObject* dict = reinterpret_cast<PyFunctionObject*>(found)->func_dict;
  const auto wraps = [&](const char* name) {
    return dict != nullptr && find_text(dict, name) == original.ptr();
  };
  return wraps("_torchdynamo_orig_callable") && wraps("__wrapped__");
}

// Attributes of a class, which are looked up again only where the class has been changed.
class Attributes {
 public:
  template <size_t kCount>
  Attributes(PyTypeObject* original, const char* const (&names)[kCount]) {
    for (const char* name : names) {
      PyObject* key = intern(name);
      entries_.emplace_back(key, py::reinterpret_borrow<py::object>(_PyType_Lookup(original, key)));
    }
  }

  bool same_in(PyTypeObject* type) {
    const unsigned tag = version_of_class(type);
    if (type == type_ && tag != 0 && tag == tag_) return same_;
    same_ = compare(type);
    type_ = type;
    tag_ = version_of_class(type);
    return same_;
  }

  // The same, without remembering the answer.
  bool compare(PyTypeObject* type) const {
    return std::all_of(entries_.begin(), entries_.end(), [&](const auto& entry) {
      return is_same(_PyType_Lookup(type, entry.first), entry.second);
    });
  }

  // Does an object's dict hide one of the class's attributes?
  bool hidden_by(PyObject* dict) const {
    return std::any_of(entries_.begin(), entries_.end(), [&](const auto& entry) {
      return entry.second && PyDict_GetItemWithError(dict, entry.first) != nullptr;
    });
  }

  // The same question, for objects whose dicts are mostly empty.
  bool any_in(PyObject* dict) const {
    if (PyDict_GET_SIZE(dict) == 0) return false;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(dict, &position, &key, &value)) {
      for (const auto& entry : entries_) {
        if (entry.first == key) return true;
      }
    }
    return false;
  }

 private:
  Entries entries_;
  PyTypeObject* type_ = nullptr;
  unsigned tag_ = 0;
  bool same_ = true;
};

// Functions of a module.
class Functions {
 public:
  explicit Functions(const py::module_& module) : dict_(module.attr("__dict__")) {}

  void note(const std::string& name) {
    PyObject* key = intern(name.c_str());
    PyObject* value = PyDict_GetItemWithError(dict_.ptr(), key);
    if (value != nullptr) entries_.emplace_back(key, py::reinterpret_borrow<py::object>(value));
  }

  bool same() {
    if (state_.still(dict_.ptr())) return same_;
    same_ = std::all_of(entries_.begin(), entries_.end(), [&](const auto& entry) {
      return is_same(PyDict_GetItemWithError(dict_.ptr(), entry.first), entry.second);
    });
    return same_;
  }

 private:
  py::object dict_;
  Entries entries_;
  DictState state_;
  bool same_ = true;
};

}  // namespace fusedopt
