// Looking at the classes of tensors: each once, for as long as it isn't changed.
#include "torch/classes.h"

#include <algorithm>
#include <deque>
#include <string>
#include <unordered_map>

#include "torch/dtensor.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

struct Entry {
  unsigned tag;
  TensorClass is;
};

std::unordered_map<PyTypeObject*, Entry>& entries() {
  static auto* const all = new std::unordered_map<PyTypeObject*, Entry>;
  return *all;
}

// What a class may define beside Tensor without changing what an operator does.
bool is_harmless(const std::string& name) {
  static const char* const kNames[] = {"__abstractmethods__",
                                       "__annotations__",
                                       "__class_getitem__",
                                       "__copy__",
                                       "__deepcopy__",
                                       "__del__",
                                       "__dict__",
                                       "__dir__",
                                       "__doc__",
                                       "__firstlineno__",
                                       "__format__",
                                       "__getnewargs__",
                                       "__getnewargs_ex__",
                                       "__getstate__",
                                       "__init__",
                                       "__init_subclass__",
                                       "__module__",
                                       "__new__",
                                       "__orig_bases__",
                                       "__parameters__",
                                       "__qualname__",
                                       "__reduce__",
                                       "__reduce_ex__",
                                       "__repr__",
                                       "__setstate__",
                                       "__sizeof__",
                                       "__slots__",
                                       "__static_attributes__",
                                       "__str__",
                                       "__weakref__"};
  return std::any_of(std::begin(kNames), std::end(kNames),
                     [&](const char* harmless) { return name == harmless; });
}

// Parameter's __torch_function__, which turns overriding off.
PyObject* disabled_torch_function() {
  PyObject* parameter = kParameterType->tp_dict;
  return parameter == nullptr ? nullptr : find_text(parameter, "__torch_function__");
}

// Is a base one of Tensor's own, so that what it defines is Tensor's?
bool is_own_base(PyTypeObject* base) { return PyType_IsSubtype(kTensorType, base); }

// Calls each(name) for every attribute of torch.Tensor's that the class has redefined.
template <typename Each>
void for_each_override(PyTypeObject* type, const Each& each) {
  // Looking up may run Python code: that of a key which only equals a name.
  const auto bases = py::reinterpret_borrow<py::tuple>(type->tp_mro);
  for (const py::handle of : bases) {
    auto* const base = reinterpret_cast<PyTypeObject*>(of.ptr());
    if (is_own_base(base) || base == kParameterType || base->tp_dict == nullptr) continue;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(base->tp_dict, &position, &key, &value)) {
      const auto held = py::reinterpret_borrow<py::object>(key);
      const std::string name = text_of(key);
      PyObject* before = _PyType_Lookup(kTensorType, key);
      PyObject* found = _PyType_Lookup(type, key);
      if (before == nullptr || found == before || is_harmless(name)) continue;
      if (name == "__torch_function__" && found == disabled_torch_function()) continue;
      each(name);
    }
  }
}

}  // namespace

TensorClass find_class(PyTypeObject* type) {
  const auto found = entries().find(type);
  if (found == entries().end() || found->second.tag != version_of_class(type)) return {};
  return found->second.is;
}

void learn_class(PyTypeObject* type) {
  static PyObject* const any_name = intern("__module__");
  static auto* const sentences = new std::deque<std::string>;  // never freed: reasons point there
  _PyType_Lookup(type, any_name);                              // gives the class a version
  find_dtensor();
  const bool dtensor = is_dtensor_class(type);
  std::string override;
  bool any_gradient = true;
  if (!dtensor) {
    for_each_override(type, [&](const std::string& name) {
      if (override.empty()) override = name;
      any_gradient = any_gradient && name != "grad" && name != "__getattribute__" &&
                     name != "__torch_function__";
    });
  }
  const char* sentence = nullptr;
  if (!override.empty()) {
    const auto text = override == "__torch_dispatch__"
                          ? "tensor subclass"
                          : std::string("class ") + type->tp_name + " overrides " + override;
    auto known = std::find(sentences->begin(), sentences->end(), text);
    if (known == sentences->end()) known = sentences->insert(sentences->end(), text);
    sentence = known->c_str();
  }
  entries()[type] = {version_of_class(type), {true, dtensor, any_gradient, sentence}};
}

}  // namespace fusedopt
