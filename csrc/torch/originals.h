// What torch's step was made of when this module was imported. Where something else is in the place
// of an original by now, a user wants torch's step to run.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace fusedopt {

namespace py = pybind11;

// Notes what there is in torch. Called once, before users can replace anything.
void note_originals();

// One of torch.optim's classes and its module; null: there is none of that name.
struct Original;
Original* find_original(const std::string& name);

// Why torch's step has to run, because it would call something else than the original; or null.
// Runs no Python code.
const char* why_not_original(Original* original, PyObject* optimizer);

// Has this one tensor an attribute of its own in the place of one that torch's step uses?
bool replaces_attribute(PyObject* tensor);

}  // namespace fusedopt
