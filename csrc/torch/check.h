// What checking a parameter and checking its state have in common.
#pragma once

#include "torch/reading.h"

namespace fusedopt {

// check_state.cpp: checks a parameter's state, as check_slot checks the parameter.
const char* check_state(Reading& reading, const Slot& slot, const Shape& shape, Work& work);

// Stores a tensor in the place of the last step's.
void set_operand(Work& work, int k, const Operand& operand);
void forget_operands(Work& work, int from);

// How a kernel stores a dtype in a group.
Format stored_as(const Group& group, Dtype dtype);

// Notes that an operand has another dtype than the parameter. Can a kernel deal with that?
bool take_format(const Group& group, Work& work, int k, const c10::TensorImpl& tensor);

// Why torch's step would call other operators than Tensor's, because of a tensor's class, or of the
// tensor alone; or null.
const char* why_not_object(Reading& reading, PyObject* tensor);

// The dtype of the gradient that torch's own step hands to lerp_.
c10::ScalarType lerped_type(const Variant& variant, const c10::TensorImpl* grad,
                            const c10::TensorImpl& param);

}  // namespace fusedopt
