// What a step still needs after a look at all objects. Everything here is owned, because satisfying
// a need may run Python code, which may do anything; the step looks at all anew afterwards.
#pragma once

#include <ATen/core/TensorBody.h>
#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "torch/groups.h"

namespace fusedopt {

namespace py = pybind11;

// State that is missing for one parameter.
struct Fresh {
  py::object param;
  py::object state;  // optimizer.state[param]; null: not there yet
  // What is to be made: the optimizer's own state, and what the group's precision needs beside it.
  bool states;
  bool remainder;
  bool roundings;
  std::vector<py::object> moved;  // single numbers that are to be moved to the device, or null
  const Group* group;
  c10::Device scalar_device;
  std::vector<std::pair<PyObject*, at::Tensor>> entries;
  std::vector<py::object> before;  // what was there under the entries' keys, or null
  bool placed = false;
};

// A kernel that has never run on a device.
struct Untried {
  Variant variant;
  Dtype dtype;
  bool mixed;
  int device;
};

struct Needs {
  // To be learned, before the step knows whether kernels or torch step what.
  std::vector<py::object> classes;
  std::vector<py::object> specs;    // DTensorSpecs
  std::vector<py::object> extents;  // DTensorSpecs whose piece's place in the whole matters
  std::vector<Untried> kernels;
  bool numbers = false;  // the host must know numbers that are on a device

  // To be provided, when the kernels are going to step.
  std::vector<at::Tensor> lazy_copies;
  std::vector<Fresh> fresh;
  std::vector<at::Tensor> shared_gradients;  // of these parameters

  bool to_learn() const {
    return numbers || !classes.empty() || !specs.empty() || !extents.empty() || !kernels.empty();
  }
  bool to_provide() const {
    return !lazy_copies.empty() || !fresh.empty() || !shared_gradients.empty();
  }
};

}  // namespace fusedopt
