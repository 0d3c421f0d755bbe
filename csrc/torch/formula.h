// How an average is computed: which of torch's functions a model's is. Reads attributes.
#pragma once

#include <cstdint>
#include <optional>

#include "cpu/kernel.h"
#include "torch/modules.h"
#include "torch/python.h"

namespace fusedopt {

// Which of torch.optim.swa_utils' functions one of fusedopt's is.
struct Function {
  bool multi;                   // of lists
  std::optional<double> decay;  // none: all values weigh the same
};

// No value: the function is none of fusedopt's.
std::optional<Function> function_of(PyObject* object);

// What torch's function computes.
struct Formula {
  Function function;
  double count;  // of values, the newest included
  const cpu::Kernel* kernel;
  double options[2];
  bool mixed;  // may the newest value have another dtype than the average?

  // Averages of int64, which torch converts to the default dtype and back. takes_integers is false
  // where torch would raise an error.
  bool takes_integers() const;
  void average_integers(int64_t* averages, const int64_t* newest, int64_t count) const;
};

// The reciprocal of num_averaged + 1, computed as of a tensor of int64. No value where the default
// dtype is another than float32 or float64.
std::optional<double> reciprocal_after(int64_t num_averaged);

// The formula of a model's attributes, after this many values. No value: torch calls a user's
// function.
std::optional<Formula> formula_of(const py::object& attributes, int64_t num_averaged);

}  // namespace fusedopt
