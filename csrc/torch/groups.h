// The parameter groups of an optimizer, read at the start of each step: users write to them.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/core/ScalarType.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "torch/optimizers.h"
#include "torch/python.h"

namespace fusedopt {

namespace py = pybind11;

// The names under which an optimizer's options and states lie, as Python's strings.
struct Keys {
  explicit Keys(const std::string& optimizer);

  const Optimizer* optimizer;
  std::vector<PyObject*> options;
  std::vector<PyObject*> states;
  PyObject* param_groups = intern("param_groups");
  PyObject* state = intern("state");
  // The states, then the single numbers (or the count of roundings), then the remainder.
  std::vector<PyObject*> entries;

  // Places in `entries`.
  size_t scalar(size_t number) const { return states.size() + number; }
  size_t remainder() const { return entries.size() - 1; }
};

// How a group's numbers are stored, where not as torch stores them.
struct Precision {
  bool noisy;                                  // what is bfloat16 is rounded by noise
  bool master;                                 // parameters are float32 in two halves
  std::optional<c10::ScalarType> state_dtype;  // of state that is made
  uint64_t seed;                               // of the noise
  bool given;  // the group has one of these options, even if the option is off by now

  // What decides how existing tensors are stepped.
  int kind() const { return (noisy ? 1 : 0) + (master ? 2 : 0) + (given ? 4 : 0); }
};

// One group's options.
struct Group {
  PyObject* dict;
  PyObject* params;
  Numbers numbers;
  c10::TensorImpl* on_device[kMaxOptions];  // the tensor of a number that the host need not know
  bool any_on_device;
  bool any_tensor;
  Variant variant;
  bool maximize;
  bool fused;  // fused=True was asked for: state["step"] is float32 then, as torch's
  bool capturable;
  bool has_capturable;  // the group has the option: torch's class refuses graphs without it
  Precision precision;
  int operands;    // of a parameter: itself, its gradient, its states, its remainder
  size_t scalars;  // single numbers of a state: the optimizer's, or how often noise has rounded
  int held;        // operands and single numbers
  const char* torch_only;  // why torch's own step takes the whole group, or null
  // Where in Keys::entries the state's operands are, and then the single numbers.
  size_t entries[kMaxOperands + 1 + kMaxScalars];
  // The group's kernel and how its numbers are stored, to be compared at once; 0 if torch's step
  // takes the group.
  uintptr_t way;
};

// Is an operand the parameters' lower halves?
inline bool is_remainder(const Group& group, int operand) {
  return operand == kFirstState + group.variant.cpu->states;
}

struct Groups {
  std::vector<Group> all;
  // Why torch's own step takes all groups as they are, or null. Where there is a reason, the rest
  // wasn't read to its end.
  const char* whole = nullptr;
  std::vector<py::object> held;  // dicts, lists and numbers, so that no Python code frees them
  // Options that are tensors. Their objects don't hold them: swap_tensors gives an object another.
  std::vector<at::Tensor> numbers;
};

// Sequences that stand for a tuple, and the items: a step reads each sequence once.
using Sequences = std::vector<std::pair<py::object, py::object>>;

// Reads all options, which may run Python code: the __float__ of an object that stands for a
// number, the __iter__ of an object that stands for a tuple. `whole` says where torch's step would
// call a user's code, such as a group's __getitem__ or a number's __neg__. With `wait`, numbers on
// a device are fetched too.
Groups read_groups(const Keys& keys, const py::object& groups, bool wait, Sequences& sequences);

}  // namespace fusedopt
