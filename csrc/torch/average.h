// torch.optim.swa_utils' averages of models, all tensors of one at once.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedopt {

namespace py = pybind11;

// Notes what torch's averages are made of. To be called once, before users can replace any of it.
void note_averages();

// Both return false, and have changed nothing, where torch's own function has to average.

// AveragedModel.update_parameters.
bool update_parameters(const py::object& averaged, const py::object& model);

// What get_ema_multi_avg_fn() and get_swa_multi_avg_fn() return, called with lists.
bool average_tensors(const py::object& function, const py::object& averages,
                     const py::object& newest, const py::object& num_averaged);

}  // namespace fusedopt
