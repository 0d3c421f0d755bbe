// Satisfying needs: the phase of a step that may fail and may run Python code. The phase holds no
// borrowed pointer, and the step looks at all anew afterwards.
#pragma once

#include "torch/needs.h"
#include "torch/reading.h"

namespace fusedopt {

// learn.cpp: finds out what look() must know. Throws only what the Python code raises.
void learn(const Needs& needs, Cache& cache);

// provide.cpp: gives each tensor memory of its own, and makes state that is missing, all of it or
// none, and adds it to `made`.
void provide(const Keys& keys, Needs& needs, const py::object& state, const py::object& optimizer,
             std::vector<Fresh>& made);

// Takes back what was made and is in place, so that the next step finds all as this step did.
void take_back(const py::object& state, std::vector<Fresh>& made);

// scaler.cpp: reads what a GradScaler hands over.
Scaler read_scaler(const py::object& grad_scale, const py::object& found_inf,
                   const py::object& clip);

// scaler.cpp: fetches the scaler's numbers from the device, which takes a wait for the device.
void read_back(Scaler& scaler);

// device.cpp: has a kernel step a few numbers on a device, once.
void try_kernel(const Untried& kernel);

}  // namespace fusedopt
