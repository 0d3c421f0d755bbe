// How tensors' classes change the operators that torch's own step calls.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedopt {

namespace py = pybind11;

struct TensorClass {
  bool known;             // else the class has to be learned first
  bool is_dtensor;        // DTensor itself, and nothing derived from it
  bool has_grad;          // `grad` is Tensor's
  const char* overrides;  // what torch's step would call instead of Tensor's; null: nothing
};

// What is known of a class: runs no Python code. A class that was changed since is unknown again.
TensorClass find_class(PyTypeObject* type);

// Looks at a class, which may run Python code.
void learn_class(PyTypeObject* type);

}  // namespace fusedopt
