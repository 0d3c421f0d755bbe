// torch.nn.Modules and what they hold: reads their dicts, and runs no Python code.
#pragma once

#include <vector>

#include "torch/python.h"
#include "torch/tensors.h"

namespace fusedopt {

// What a module's parameters() and buffers() give, in this order and each once. The tensors' Python
// objects are held; the tensors themselves are borrowed from them until own(), as counting a
// reference takes 20 ns: where there is an object, torch counts the object's, too.
class Members {
 public:
  Members() = default;
  Members(const Members&) = delete;
  Members& operator=(const Members&) = delete;
  ~Members();

  // Adds a tensor, or a DTensor's piece on this process. False: the object is neither.
  bool add(PyObject* tensor, std::vector<Covered>& all);

  // Counts references to the tensors. Called before the interpreter's lock is released.
  void own();

  std::vector<Covered> parameters;
  std::vector<Covered> buffers;

 private:
  std::vector<PyObject*> objects_;
  bool owned_ = false;
};

// Notes torch.nn.Module's methods. To be called once, before users can replace any.
void note_modules();

// Gathers a module's members. False: its methods have to be called, because one isn't torch's own,
// or an object is none that torch would put there.
bool gather(PyObject* module, Members& members);

// Are its parameters() and buffers() torch's own, whatever its submodules do?
bool has_own_members(PyObject* module);

// A module's attributes, owned.
py::object dict_of(PyObject* object);

// Borrowed, under a key that intern() made; null: there is none.
inline PyObject* find(const py::object& dict, PyObject* key) {
  PyObject* value = dict ? PyDict_GetItemWithError(dict.ptr(), key) : nullptr;
  if (value == nullptr) PyErr_Clear();
  return value;
}

}  // namespace fusedopt
