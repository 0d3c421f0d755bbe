// DTensor: a tensor in pieces, of which this process has one, and steps it where it lies.
#pragma once

#include <c10/core/TensorImpl.h>
#include <pybind11/pybind11.h>

#include <unordered_map>
#include <vector>

#include "torch/runs.h"

namespace fusedopt {

namespace py = pybind11;

// Is it torch's class DTensor? Looks for it where it is imported already, which may run Python
// code: until then there is no DTensor.
bool is_dtensor_class(PyTypeObject* type);

// Is it a DTensor, and nothing derived from it, whose class is_dtensor_class has seen?
bool is_dtensor(PyObject* object);

// A DTensor's piece on this process, and its DTensorSpec: which piece of what that is. Borrowed,
// and null where the slots are empty. Read from the object itself: no Python code runs.
struct Piece {
  c10::TensorImpl* local;
  PyObject* spec;
};
Piece piece_of(PyObject* dtensor);

// Numbers for DTensorSpecs: equal ones cut a tensor alike, so that pieces belong together.
//
// Comparing specs is Python code, so a spec that wasn't seen before has no number until it is
// learned. All that were seen are owned, which keeps their addresses from being used for others.
class Cuts {
 public:
  static constexpr int kUnknown = -1;
  static constexpr int kUncovered = -2;  // Partial, or a placement that we don't know

  int number_of(PyObject* spec) const;
  // Gives a number to each. Forgets what is in use no more, if more than `in_use` specs aren't.
  void learn(const std::vector<py::object>& specs, size_t in_use);

  // Where the piece of a spec lies in the whole. Null: not learned.
  const Extent* extent_of(PyObject* spec) const;
  // Of specs that have a number. Throws where a piece isn't one block of the whole.
  void learn_extents(const std::vector<py::object>& specs);

 private:
  std::unordered_map<PyObject*, int> numbers_;
  std::unordered_map<PyObject*, Extent> extents_;
  std::vector<py::object> known_;  // the specs in numbers_
  py::object by_cut_;              // a dict from mesh, placements and shard order to the number
};

}  // namespace fusedopt
