// Looking at an optimizer's objects: the phase of a step that reads Python's objects and tensors.
#pragma once

#include "torch/reading.h"

namespace fusedopt {

// Fills a reading: which parameters a kernel steps, where their tensors are, and what is needed
// before that. Runs no Python code, changes nothing but the cache, and throws on what torch would
// refuse. What torch has `done` is left out by its place in the lists, whatever has become of it.
// With `all`, parameters without a gradient are looked at too, and errors are collected.
void look(Reading& reading, PyObject* state, const Places& done, bool all);

// needs.cpp: what the kernels' slots lack, as owned objects.
void find_needs(Reading& reading);

// needs.cpp: gradients that can't be unscaled where they are.
void find_shared(Reading& reading);

// needs.cpp: the second time that state is missing, or gradients are shared, after they were
// provided.
void give_up(Reading& reading);

// check.cpp: one parameter. Why torch's own step takes it, or null, and then `work` is filled.
const char* check_slot(Reading& reading, const Slot& slot, c10::TensorImpl* grad, Work& work);

// The same in a few instructions, where nothing has changed since the last step found all as usual.
bool is_unchanged(const Keys& keys, const Group& group, const Slot& slot, c10::TensorImpl& grad,
                  Work& work);

// Was it as usual, so that is_unchanged may be asked next time? Only of what check_slot took.
bool is_usual(const Reading& reading, const Slot& slot, const Work& work);

// device.cpp: have a state's single numbers to be where the parameter is, on a device?
bool counts_on_device(const Reading& reading, const Group& group, const Work& work);

// device.cpp: why torch's own step takes a parameter on a device, or null.
const char* check_device(Reading& reading, const Slot& slot, Work& work);

// device.cpp: does the host need numbers that are on a device?
void find_needed_numbers(Reading& reading);

// dtensor.cpp: puts the pieces of a DTensor and its gradient in their place. Why torch's own step
// takes them, or null.
const char* take_pieces(Reading& reading, const Slot& slot, Work& work, c10::TensorImpl*& param,
                        c10::TensorImpl*& grad);
// The same for a state, or without a key for a gradient, of a DTensor.
const char* take_piece(Reading& reading, const Slot& slot, const char* key, PyObject* object,
                       const Work& work, c10::TensorImpl*& tensor);

// Notes that torch's step would call a user's code, so that all is torch's. Returns the reason.
const char* by_user(Reading& reading, const char* reason);

// For an object that isn't a tensor: throws if it is only data; else torch's step finds out whether
// it can stand for one, and that sentence is returned.
const char* why_not_tensor(Reading& reading, const Slot& slot, const std::string& what,
                           PyObject* object);

// Throws if the step count of a slot that torch's step takes can't be counted up, in the middle of
// that step.
void refuse_step(const Reading& reading, const Slot& slot);

// values[k]: the object under state key k; values[keys]: the step.
void read_state(const Keys& keys, PyObject* dict, PyObject** values);

// What torch's step would call instead of Tensor's operators, or null. An unknown class is a need.
const char* why_not_class(Reading& reading, PyObject* tensor);

// The parameter's place in param_groups, and its name if it has one.
std::string name_of(const Reading& reading, const Slot& slot);

// Throws if it is an inference tensor that may not be changed here.
void refuse_inference(const Reading& reading, const Slot& slot, const std::string& what,
                      const c10::TensorImpl& tensor);

}  // namespace fusedopt
