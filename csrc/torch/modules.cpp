// Walking modules: reads their dicts as torch.nn.Module's own methods do.
#include "torch/modules.h"

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "torch/attributes.h"
#include "torch/dtensor.h"
#include "torch/seen.h"

namespace fusedopt {

namespace {

// What parameters() and buffers() ask every module for.
constexpr const char* kOfModules[] = {"__eq__",   "__getattribute__", "__hash__",     "_buffers",
                                      "_modules", "_parameters",      "named_modules"};

// And what they ask only the module on which they are called.
constexpr const char* kOfRoots[] = {"_named_members", "buffers", "named_buffers",
                                    "named_parameters", "parameters"};

// Python's recursion ends at some depth too.
constexpr int kMaxDepth = 200;

struct ModuleNames {
  PyTypeObject* type;  // kept
  Attributes modules;
  Attributes roots;
  PyObject* buffers_key = intern("_buffers");
  PyObject* modules_key = intern("_modules");
  PyObject* parameters_key = intern("_parameters");
  PyObject* named_modules_key = intern("named_modules");
};

const ModuleNames& module_names() {
  static const auto* const all = [] {
    py::object module = py::module_::import("torch.nn").attr("Module");
    auto* const type = reinterpret_cast<PyTypeObject*>(module.release().ptr());
    return new ModuleNames{type, {type, kOfModules}, {type, kOfRoots}};
  }();
  return *all;
}

// What is known of a class, until it is changed.
struct ModuleClass {
  unsigned tag;
  bool usual;
  bool usual_root;
};

const ModuleClass& class_of(PyObject* object) {
  static auto* const classes = new std::unordered_map<PyTypeObject*, ModuleClass>;
  PyTypeObject* type = Py_TYPE(object);
  ModuleClass& known = (*classes)[type];
  if (known.tag != 0 && known.tag == version_of_class(type)) return known;
  known.usual = PyType_IsSubtype(type, module_names().type) && module_names().modules.compare(type);
  known.usual_root = known.usual && module_names().roots.compare(type);
  known.tag = version_of_class(type);
  return known;
}

class Walk {
 public:
  explicit Walk(Members& members) : members_(members) {}

  bool visit(PyObject* module, int depth) {
    if (depth > kMaxDepth || !class_of(module).usual) return false;
    if (!modules_.add(module)) return true;
    const ModuleNames& keys = module_names();
    const py::object dict = dict_of(module);
    if (find(dict, keys.named_modules_key) != nullptr) return false;
    if (!add(find(dict, keys.parameters_key), parameters_, members_.parameters) ||
        !add(find(dict, keys.buffers_key), buffers_, members_.buffers)) {
      return false;
    }
    const auto children = py::reinterpret_borrow<py::object>(find(dict, keys.modules_key));
    if (!children || !PyDict_CheckExact(children.ptr())) return false;
    PyObject *name, *child;
    Py_ssize_t position = 0;
    while (PyDict_Next(children.ptr(), &position, &name, &child)) {
      // A name that is no str would make named_modules() raise an error.
      if (child == Py_None) continue;
      const auto held = py::reinterpret_borrow<py::object>(child);
      if (!PyUnicode_CheckExact(name) || !visit(child, depth + 1)) return false;
    }
    return true;
  }

 private:
  bool add(PyObject* dict, Seen& seen, std::vector<Covered>& all) {
    if (dict == nullptr || !PyDict_CheckExact(dict)) return false;
    PyObject *name, *object;
    Py_ssize_t position = 0;
    while (PyDict_Next(dict, &position, &name, &object)) {
      if (object == Py_None) continue;
      if (!PyUnicode_CheckExact(name)) return false;
      if (seen.add(object) && !members_.add(object, all)) return false;
    }
    return true;
  }

  Members& members_;
  Seen modules_;
  Seen parameters_;
  Seen buffers_;
};

}  // namespace

Members::~Members() {
  release();
  parameters.clear();
  buffers.clear();
  for (const Object& held : objects_) Py_DECREF(held.object);
}

bool Members::add(PyObject* tensor, std::vector<Covered>& all) {
  PyObject* whole = nullptr;
  at::TensorImpl* impl;
  if (is_exact(tensor)) {
    impl = &impl_of(tensor);
  } else {
    if (!is_dtensor(tensor) || impl_of(tensor).is_inference()) return false;
    whole = tensor;
    impl = piece_of(tensor).local;
    if (impl == nullptr) return false;
  }
  objects_.push_back({tensor, impl});
  Py_INCREF(tensor);
  all.push_back(
      {at::Tensor(c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>::reclaim(impl)),
       {},
       whole});
  return true;
}

// Lets go of what is only borrowed, without counting.
void Members::release() {
  if (owned_) return;
  for (std::vector<Covered>* all : {&parameters, &buffers}) {
    for (Covered& item : *all) item.tensor.unsafeReleaseTensorImpl();
  }
}

void Members::own() {
  if (owned_) return;
  for (std::vector<Covered>* all : {&parameters, &buffers}) {
    for (Covered& item : *all) {
      at::Tensor counted = item.tensor;
      item.tensor.unsafeReleaseTensorImpl();
      item.tensor = std::move(counted);
    }
  }
  owned_ = true;
}

void Members::freeze() {
  std::vector<at::Tensor> all;
  for (std::vector<Covered>* of : {&parameters, &buffers}) {
    for (const Covered& item : *of) all.push_back(frozen(item.tensor));
  }
  release();
  size_t next = 0;
  for (std::vector<Covered>* of : {&parameters, &buffers}) {
    for (Covered& item : *of) item.tensor = std::move(all[next++]);
  }
  owned_ = true;
}

bool Members::are_same() const {
  return std::all_of(objects_.begin(), objects_.end(), [](const Object& held) {
    const c10::TensorImpl* tensor = is_exact(held.object)     ? &impl_of(held.object)
                                    : is_dtensor(held.object) ? piece_of(held.object).local
                                                              : nullptr;
    return tensor == held.tensor;
  });
}

void note_modules() { module_names(); }

py::object dict_of(PyObject* object) {
  const WithoutCollections borrowing;
  auto dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(object, nullptr));
  if (!dict) PyErr_Clear();
  return dict;
}

bool has_own_members(PyObject* module) {
  if (!class_of(module).usual_root) return false;
  const py::object dict = dict_of(module);
  return dict && !module_names().roots.hidden_by(dict.ptr());
}

bool gather(PyObject* module, Members& members) {
  return has_own_members(module) && Walk(members).visit(module, 0);
}

}  // namespace fusedopt
