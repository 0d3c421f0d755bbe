// What torch's step is made of, as it was when this module was imported: where something else is in
// its place by now, torch's step is what a user wants to run.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace fusedopt {

namespace py = pybind11;

// Notes what there is in torch. To be called once, before users can replace any of it.
void note_originals();

// Why torch's step has to run, because it is another than the original, or null. `optimizer` is an
// object, `name` the torch.optim class that its step is from. Runs no Python code.
const char* why_not_original(PyObject* optimizer, const std::string& name);

// Has this one tensor an attribute of its own in the place of one that torch's step uses?
bool replaces_attribute(PyObject* tensor);

}  // namespace fusedopt
