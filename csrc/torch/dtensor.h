// DTensor: a tensor in pieces. This process has one piece, and steps the piece where it lies.
#pragma once

#include <c10/core/TensorImpl.h>
#include <pybind11/pybind11.h>

#include <unordered_map>
#include <vector>

#include "torch/runs.h"

namespace fusedopt {

namespace py = pybind11;

// Looks for torch's DTensor where it is imported already, because before the import there is no
// DTensor. May run Python code.
void find_dtensor();

// Is a class the DTensor that was found? Is an object one, and nothing derived from it?
bool is_dtensor_class(const PyTypeObject* type);
bool is_dtensor(PyObject* object);

// A DTensor's piece on this process, and the DTensorSpec, which says what part of which whole the
// piece is. Both are borrowed, and null where the object's slots are empty. They are read from the
// object itself: no Python code runs.
struct Piece {
  c10::TensorImpl* local;
  PyObject* spec;
};
Piece piece_of(PyObject* dtensor);

// Numbers for DTensorSpecs: equal ones cut a tensor alike, so that pieces belong together.
//
// Comparing specs is Python code, so a spec that wasn't seen before has no number until it is
// learned. All specs that were seen are owned: no other object can have their addresses then.
class Cuts {
 public:
  static constexpr int kUnknown = -1;
  static constexpr int kUncovered = -2;  // Partial, or a placement that we don't know

  int number_of(PyObject* spec) const;
  // Gives a number to each spec. Forgets the specs that aren't in use, if those are more than
  // `in_use`.
  void learn(const std::vector<py::object>& specs, size_t in_use);

  // Where the piece of a spec lies in the whole. Null: not learned.
  const Extent* extent_of(PyObject* spec) const;
  // For specs that have a number. Throws where a piece isn't one block of the whole.
  void learn_extents(const std::vector<py::object>& specs);

 private:
  std::unordered_map<PyObject*, int> numbers_;
  std::unordered_map<PyObject*, Extent> extents_;
  std::vector<py::object> known_;  // the specs in numbers_
  py::object by_cut_;              // a dict from mesh, placements and shard order to the number
  int newest_ = 0;                 // the number, each given once
};

}  // namespace fusedopt
