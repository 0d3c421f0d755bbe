// DTensors in a step: their pieces take the place of parameter, gradient and state.
#include "torch/dtensor.h"

#include <structmember.h>
#include <torch/csrc/autograd/python_variable.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "torch/plan.h"

namespace fusedopt {

namespace {

// Where Python keeps the two slots of a DTensor.
struct DTensorType {
  PyTypeObject* type;
  Py_ssize_t local;
  Py_ssize_t spec;
};

// The offset of an entry of __slots__, or -1.
Py_ssize_t slot_offset(PyTypeObject* type, const char* name) {
  PyObject* member = PyDict_GetItemString(type->tp_dict, name);
  if (member == nullptr || Py_TYPE(member) != &PyMemberDescr_Type) return -1;
  const PyMemberDef* slot = reinterpret_cast<PyMemberDescrObject*>(member)->d_member;
  return slot->type == T_OBJECT_EX ? slot->offset : -1;
}

// Looks for the class where it is imported already; until then there is no DTensor.
DTensorType find_dtensor() {
  static PyObject* const name = PyUnicode_InternFromString("torch.distributed.tensor");
  const auto module = py::reinterpret_steal<py::object>(PyImport_GetModule(name));
  const auto type = py::reinterpret_steal<py::object>(
      module ? PyObject_GetAttrString(module.ptr(), "DTensor") : nullptr);
  PyErr_Clear();
  if (!type || !PyType_Check(type.ptr())) return {};
  auto* found = reinterpret_cast<PyTypeObject*>(type.ptr());
  const DTensorType dtensor{found, slot_offset(found, "_local_tensor"),
                            slot_offset(found, "_spec")};
  if (dtensor.local < 0 || dtensor.spec < 0) return {};
  Py_INCREF(found);  // kept for as long as the process lives
  return dtensor;
}

const DTensorType& dtensor_type() {
  static DTensorType known{};
  if (known.type == nullptr) known = find_dtensor();
  return known;
}

// The wrapper's object; null for a tensor that Python doesn't see as a subclass.
PyObject* object_of(const at::Tensor& tensor) {
  if (!tensor.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python)) return nullptr;
  PyObject* object = THPVariable_Wrap(tensor);  // there already, and kept by the tensor
  Py_XDECREF(object);
  return object;
}

// Do the elements of every piece belong together if the placements are equal? Not where they are
// summands.
bool is_covered(const py::handle& placements) {
  const auto module = py::module_::import("torch.distributed.tensor.placement_types");
  for (const py::handle placement : placements) {
    bool known = false;
    for (const char* name : {"Shard", "Replicate", "_StridedShard"}) {
      known = known || py::type::of(placement).is(py::getattr(module, name, py::none()));
    }
    if (!known) return false;
  }
  return true;
}

}  // namespace

bool is_dtensor(PyObject* object) {
  const DTensorType& dtensor = dtensor_type();
  return dtensor.type != nullptr && Py_TYPE(object) == dtensor.type;
}

Piece piece_of(PyObject* dtensor) {
  const auto slot = [&](Py_ssize_t offset) {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(dtensor) + offset);
  };
  PyObject* local = slot(dtensor_type().local);
  const bool is_tensor = local != nullptr && THPVariable_Check(local);
  return {is_tensor ? THPVariable_Unpack(local).unsafeGetTensorImpl() : nullptr,
          slot(dtensor_type().spec)};
}

int Cuts::number_of(PyObject* spec) {
  const auto found = numbers_.find(spec);
  if (found != numbers_.end()) return found->second;
  unknown_.push_back(py::reinterpret_borrow<py::object>(spec));
  return kUnknown;
}

bool Cuts::learn(size_t in_use) {
  if (unknown_.empty()) return false;
  const auto specs = std::exchange(unknown_, {});
  if (!by_cut_ || numbers_.size() > 2 * in_use) {
    numbers_.clear();
    const auto dropped = std::exchange(known_, {});
    by_cut_ = py::dict();
  }
  for (const py::object& spec : specs) {
    const py::object placements = spec.attr("placements");
    int number = kUncovered;
    if (is_covered(placements)) {
      const auto cut = py::make_tuple(spec.attr("mesh"), placements,
                                      py::getattr(spec, "shard_order", py::none()));
      number = by_cut_.attr("setdefault")(cut, 1 + py::len(by_cut_)).cast<int>();
    }
    if (numbers_.emplace(spec.ptr(), number).second) known_.push_back(spec);
  }
  return true;
}

// Puts the pieces of a DTensor and its gradient in their place. Returns why torch's own step takes
// them, or null.
const char* Plan::take_pieces(const Slot& slot, Work& work, c10::TensorImpl*& param,
                              c10::TensorImpl*& grad) {
  c10::TensorImpl& whole = *param;
  const Piece piece = piece_of(slot.param);
  if (piece.local == nullptr || piece.spec == nullptr) return "a DTensor without its local tensor";
  work.cut = cuts_.number_of(piece.spec);
  if (work.cut == Cuts::kUnknown) return "its placements are to be compared";
  if (work.cut == Cuts::kUncovered) return "a placement other than Shard and Replicate";
  refuse_inference(slot, "", whole);
  param = piece.local;
  if (grad == nullptr) return nullptr;
  return take_piece(slot, nullptr, object_of(whole.grad()), work, grad);
}

// The same for a state, or without a key for a gradient, of a DTensor.
const char* Plan::take_piece(const Slot& slot, const char* key, PyObject* object, const Work& work,
                             c10::TensorImpl*& tensor) {
  if (object == nullptr || !is_dtensor(object)) {
    return key == nullptr ? "its gradient is not a DTensor" : "its state is not a DTensor";
  }
  const Piece piece = piece_of(object);
  if (piece.local == nullptr || piece.spec == nullptr) return "a DTensor without its local tensor";
  if (piece.spec != piece_of(slot.param).spec) {
    const int cut = cuts_.number_of(piece.spec);
    if (cut == Cuts::kUnknown) return "its placements are to be compared";
    if (cut != work.cut) {
      return key == nullptr ? "its gradient is placed otherwise" : "its state is placed otherwise";
    }
  }
  const auto what = [&] {
    return key == nullptr ? ": its gradient" : std::string(": state['") + key + "']";
  };
  const c10::TensorImpl& whole = *THPVariable_Unpack(slot.param).unsafeGetTensorImpl();
  if (!same_sizes(*tensor, whole)) {
    throw std::runtime_error(name_of(slot) + what() + " has " + describe(*tensor) + ", expected " +
                             describe(whole));
  }
  if (is_frozen_inference(*tensor)) refuse_inference(slot, what(), *tensor);
  tensor = piece.local;
  return nullptr;
}

// Writes the addresses of a DTensor's pieces into the table. The versions that count up are the
// DTensors' own: they are what torch's operators count, and not the pieces'.
void Plan::enter_pieces(const Slot& slot, const Work& work, int operands, bool scaled,
                        TensorEntry& entry) const {
  const at::Tensor& param = THPVariable_Unpack(slot.param);
  const auto& keys = groups_[slot.group].variant.keys;
  for (int k = 0; k < operands; ++k) {
    entry.operands[k] = const_cast<char*>(work.operands[k].address);
    if (k == 1 && !scaled) continue;
    const at::Tensor& whole = k == 0   ? param
                              : k == 1 ? param.unsafeGetTensorImpl()->grad()
                                       : THPVariable_Unpack(work.traces.state[keys[k - 2]]);
    whole.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace fusedopt
