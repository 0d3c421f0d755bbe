// State that a step makes where there is none, and takes back if the step can't be made.
#pragma once

#include <ATen/core/TensorBody.h>
#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

namespace fusedopt {

namespace py = pybind11;

struct Group;

// What is missing for one parameter.
struct Fresh {
  py::object param;  // owned: a DTensor's state, and putting state in place, run Python code
  py::object state;  // optimizer.state[param]; null: not there yet
  py::object step;   // what is to be moved to the device; null: all state is to be made
  const Group* group;
  c10::Device step_device;
  std::vector<std::pair<PyObject*, at::Tensor>> entries;
  std::vector<py::object> before;  // what was there under their keys, or null
  bool placed = false;
};

// Enters it in optimizer.state.
void put_in_place(const py::object& state, Fresh& fresh);

// Takes back what is in place: the next step finds all as this one did.
void take_back(const py::object& state, const std::vector<Fresh>& all);

}  // namespace fusedopt
