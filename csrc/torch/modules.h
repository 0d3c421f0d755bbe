// torch.nn.Modules and what they hold: reads their dicts.
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

  // Counts references to the tensors. Called before Python code runs.
  void own();

  // Takes the place of the tensors by `frozen` ones. Called before the interpreter's lock is
  // released.
  void freeze();

  // Do the objects still have these tensors, so that those that are borrowed live? swap_tensors
  // gives an object another.
  bool are_same() const;

  std::vector<Covered> parameters;
  std::vector<Covered> buffers;

 private:
  void release();

  struct Object {
    PyObject* object;
    const c10::TensorImpl* tensor;  // or the piece
  };
  std::vector<Object> objects_;
  bool owned_ = false;
};

// Notes torch.nn.Module's methods. To be called once, before users can replace any.
void note_modules();

// Gathers a module's members; find_dtensor has looked. Runs no Python code, unless a dict has a key
// that isn't a str and compares itself: ask are_same() then. False: its methods have to be called,
// because one isn't torch's own, or an object is none that torch would put there.
bool gather(PyObject* module, Members& members);

// Are its parameters() and buffers() torch's own, whatever its submodules do?
bool has_own_members(PyObject* module);

// An object's attributes, owned.
py::object dict_of(PyObject* object);

// Borrowed, under a key that intern() made, until something else is looked up: a key of a user's
// may run Python code. Null: there is none.
inline PyObject* find(const py::object& dict, PyObject* key) {
  PyObject* value = dict ? PyDict_GetItemWithError(dict.ptr(), key) : nullptr;
  if (value == nullptr) PyErr_Clear();
  return value;
}

}  // namespace fusedopt
