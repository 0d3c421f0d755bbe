// torch.optim.Optimizer.zero_grad, of all parameters at once.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedopt {

namespace py = pybind11;

// Notes what torch's method is made of. To be called once, before users can replace any of it.
void note_zero_grad();

// Returns false, and has changed nothing, where torch's own method has to do it. `ours` is the
// class whose method calls this: what its bases have is torch's.
bool zero_grad(const py::object& optimizer, const py::object& ours, const py::object& set_to_none);

}  // namespace fusedopt
