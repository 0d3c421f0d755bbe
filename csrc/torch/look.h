// Looking at an optimizer's objects: the phase of a step that reads Python's objects and tensors.
#pragma once

#include "torch/reading.h"

namespace fusedopt {

// Fills a reading: which parameters a kernel steps, where their tensors are, and what is needed
// before that. Runs no Python code, changes nothing but the cache, and throws on what torch would
// refuse. Parameters that torch has `done` are left out. With `all`, parameters without a gradient
// are looked at too, and errors are collected.
void look(Reading& reading, PyObject* state, const Done& done, bool all);

// A parameter's gradient, or null. Autograd may replace and free it on another thread, without the
// interpreter's lock. If there is another thread, the gradient is therefore owned from the moment
// it is read, as torch's own `param.grad` is.
c10::TensorImpl* gradient_of(Reading& reading, PyObject* param);

// slots.cpp: reads which parameters there are, and then the state of each.
void read_slots(Reading& reading);
void read_states(Cache& cache, PyObject* state);

// needs.cpp: notes what the kernels' slots lack, as owned objects.
void find_needs(Reading& reading);

// needs.cpp: notes gradients that can't be unscaled where they are.
void find_shared(Reading& reading);

// needs.cpp: leaves slots to torch whose state is still missing, or whose gradients are still
// shared, after both were provided.
void give_up(Reading& reading);

// check.cpp: checks one parameter. Returns why torch's own step takes the parameter, or null, and
// then `work` is filled.
const char* check_slot(Reading& reading, const Slot& slot, c10::TensorImpl* grad, Work& work);

// Replaces check_slot by a few instructions, where nothing has changed since the last step found
// all as usual.
bool is_unchanged(const Group& group, const Slot& slot, c10::TensorImpl& grad, Work& work);

// Was all of a slot as usual, so that the next step may ask is_unchanged? Only for slots that
// check_slot took.
bool is_usual(const Reading& reading, const Slot& slot, const Work& work);

// device.cpp: must a state's single numbers be where the parameter is, on a device?
bool counts_on_device(const Reading& reading, const Group& group, const Work& work);

// device.cpp: why torch's own step takes a parameter on a device, or null.
const char* check_device(Reading& reading, const Slot& slot, Work& work);

// device.cpp: notes as a need that the host must know numbers that are on a device.
void find_needed_numbers(Reading& reading);

// dtensor.cpp: puts the local pieces in the place of a DTensor and of the DTensor's gradient. Why
// torch's own step takes them, or null.
const char* take_pieces(Reading& reading, const Slot& slot, Work& work, c10::TensorImpl*& param,
                        c10::TensorImpl*& grad);
// The same for a state, or without a key for a gradient, of a DTensor.
const char* take_piece(Reading& reading, const Slot& slot, const char* key, PyObject* object,
                       const Work& work, c10::TensorImpl*& tensor);

// Notes that torch's step would call a user's code, so that torch steps all. Returns the reason.
const char* by_user(Reading& reading, const char* reason);

// For an object that isn't a tensor. Throws if the object is only data. Else torch's step finds out
// whether the object can stand for a tensor, and the function returns the reason that says so.
const char* why_not_tensor(Reading& reading, const Slot& slot, const std::string& what,
                           PyObject* object);

// Throws if the step count of a slot that torch's step takes can't be counted up, in the middle of
// that step.
void refuse_step(const Reading& reading, const Slot& slot);

// values[k]: the object under state key k; values[keys]: the step.
void read_state(const Keys& keys, PyObject* dict, PyObject** values);

// What torch's step would call instead of Tensor's operators, or null. An unknown class is a need.
const char* why_not_class(Reading& reading, PyObject* tensor);

// The parameter's place in param_groups, and the parameter's name, if there is one.
std::string name_of(const Reading& reading, const Slot& slot);

// Throws if the tensor is an inference tensor that may not be changed here.
void refuse_inference(const Reading& reading, const Slot& slot, const std::string& what,
                      const c10::TensorImpl& tensor);

}  // namespace fusedopt
