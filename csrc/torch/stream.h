// The benchmarks' stream kernel, as Python sees it.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedopt {

// Reads one int32 tensor and updates up to four, all contiguous, on the CPU and of one length.
void stream(const pybind11::object& read, const pybind11::list& updated);

// Only reads one.
void stream_read(const pybind11::object& read);

}  // namespace fusedopt
