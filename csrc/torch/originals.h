// What torch's step is made of, as it was when this module was imported: where something else is in
// its place by now, torch's step is what a user wants to run.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace fusedopt {

namespace py = pybind11;

// Notes what there is in torch. To be called once, before users can replace any of it.
void note_originals();

// One of torch.optim's classes and its module; null: there is none of that name.
struct Original;
Original* find_original(const std::string& name);

// Why torch's step has to run, because what it calls is another than the original; or null. Runs no
// Python code.
const char* why_not_original(Original* original, PyObject* optimizer);

// Has this one tensor an attribute of its own in the place of one that torch's step uses?
bool replaces_attribute(PyObject* tensor);

}  // namespace fusedopt
