// torch.nn.utils' functions that clip gradients, over all of them at once.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedopt {

namespace py = pybind11;

// Each returns None, and has changed nothing, where torch's own function has to clip. An iterable
// that can be walked only once, such as a generator, has to be a list already.

// Raises what torch does where a norm isn't finite.
void refuse_nonfinite(double order);

// The norm of tensors, in the host's memory or all on one device.
py::object get_total_norm(const py::object& tensors, double order, bool error_if_nonfinite);

// The norm before its root is taken, so that it can still be added or compared.
py::object norm_part(const py::object& tensors, double order);

// The norm of the parameters' gradients, which then are scaled.
py::object clip_grad_norm(const py::object& params, double max_norm, double order,
                          bool error_if_nonfinite);

// True, if the gradients are scaled or clamped.
py::object clip_grads_with_norm(const py::object& params, double max_norm, const py::object& norm);
py::object clip_grad_value(const py::object& params, double clip_value);

}  // namespace fusedopt
