// How an average is computed: which of torch's functions a model's is. Reads attributes, and runs
// no Python code.
#pragma once

#include <cstdint>
#include <optional>

#include "cpu/kernel.h"
#include "torch/modules.h"
#include "torch/python.h"

namespace fusedopt {

// Which of torch.optim.swa_utils' functions, of fusedopt's making.
struct Function {
  bool multi;                   // of lists
  std::optional<double> decay;  // none: all values weigh the same
};

// Nothing, where it is another one's function.
std::optional<Function> function_of(PyObject* object);

// What torch's function computes.
struct Formula {
  Function function;
  double count;  // of values, the newest included
  const cpu::Kernel* kernel;
  double options[2];
  bool mixed;  // may the newest value have another dtype than the average?

  // Of an int64, as torch converts it to the default dtype and back; false: it would raise.
  bool takes_integers() const;
  void average_integers(int64_t* averages, const int64_t* newest, int64_t count) const;
};

// The reciprocal of num_averaged + 1, as a tensor of int64 has it; nothing where the default dtype
// is another than float32 or float64.
std::optional<double> reciprocal_after(int64_t num_averaged);

// A model's, by its attributes, after this many values. Nothing: a user's function is called.
std::optional<Formula> formula_of(const py::object& attributes, int64_t num_averaged);

}  // namespace fusedopt
