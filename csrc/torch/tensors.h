// Lists of tensors for what is done beside `step`: clipping, averaging. Reads Python's objects.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

#include "cpu/kernel.h"
#include "torch/operand.h"
#include "torch/seen.h"

namespace fusedopt {

namespace py = pybind11;

// A tensor in the host's memory, owned.
struct Covered {
  at::Tensor tensor;
  Dtype dtype;
  PyObject* whole = nullptr;  // the DTensor of which this is the process's piece, borrowed
};

// Does torch's function do with this tensor what a kernel would: is it one of torch's own classes,
// in the host's memory, of a dtype that kernels know?
bool is_covered(const at::Tensor& tensor);

// A list or tuple as it is, a single tensor in a tuple, or the elements of any other iterable,
// whose iteration runs Python code.
py::object listed(const py::object& tensors);

// Reads a list that listed() made. False: torch's own function has to take it.
bool read_tensors(const py::object& list, std::vector<Covered>& all);
bool read_gradients(const py::object& params, std::vector<Covered>& all);

// Looks at the same tensors again, after others may have changed them. False: as above.
bool read_again(std::vector<Covered>& all);

// The same tensor as it is now, whatever others do to this one while the interpreter's lock is
// released: in the same memory, with the same version.
at::Tensor frozen(const at::Tensor& tensor);

// May any tensor here be written while the others are read or written? Not if two share memory.
bool may_write(const std::vector<Covered>& all);

// Has a tensor a storage to itself, beside those in the set? That is quickly seen, and usual.
bool has_own_storage(const at::Tensor& tensor, Seen& storages);

// Sweeps a kernel without state over pairs: the target is its parameter, the source its gradient.
struct Pair {
  const Covered* target;
  const Covered* source;
};

// Gives targets memory of their own where memory is shared until somebody writes.
void unshare_targets(const std::vector<Pair>& pairs);

void count_versions(const std::vector<Pair>& pairs);  // of the targets

void sweep_pairs(const cpu::Kernel& kernel, const double* options, const std::vector<Pair>& pairs);

}  // namespace fusedopt
