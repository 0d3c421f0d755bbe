// DTensors in a step: their pieces take the place of parameter, gradient and state.
#include "torch/dtensor.h"

#include <pybind11/stl.h>
#include <structmember.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "torch/look.h"
#include "torch/python.h"

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

// Kept for as long as the process lives, once it is known.
DTensorType& dtensor_type() {
  static DTensorType known{};
  return known;
}

// The tensor's Python object.
PyObject* object_of(c10::TensorImpl& tensor) { return tensor.pyobj_slot()->load_pyobj(); }

// Do the elements of every piece belong together if the placements are equal? Not where pieces are
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

void find_dtensor() {
  DTensorType& known = dtensor_type();
  if (known.type != nullptr) return;
  static PyObject* const name = PyUnicode_InternFromString("torch.distributed.tensor");
  const auto module = py::reinterpret_steal<py::object>(PyImport_GetModule(name));
  const auto found = py::reinterpret_steal<py::object>(
      module ? PyObject_GetAttrString(module.ptr(), "DTensor") : nullptr);
  PyErr_Clear();
  if (!found || !PyType_Check(found.ptr())) return;
  auto* dtensor = reinterpret_cast<PyTypeObject*>(found.ptr());
  const Py_ssize_t local = slot_offset(dtensor, "_local_tensor");
  const Py_ssize_t spec = slot_offset(dtensor, "_spec");
  if (local < 0 || spec < 0) return;
  Py_INCREF(dtensor);
  known = {dtensor, local, spec};
}

bool is_dtensor_class(const PyTypeObject* type) {
  const PyTypeObject* dtensor = dtensor_type().type;
  return dtensor != nullptr && type == dtensor;
}

bool is_dtensor(PyObject* object) { return is_dtensor_class(Py_TYPE(object)); }

Piece piece_of(PyObject* dtensor) {
  const auto slot = [&](Py_ssize_t offset) {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(dtensor) + offset);
  };
  PyObject* local = slot(dtensor_type().local);
  // Only a plain local tensor is taken, because another class may change operators.
  const bool plain = local != nullptr && is_exact(local);
  return {plain ? &impl_of(local) : nullptr, slot(dtensor_type().spec)};
}

int Cuts::number_of(PyObject* spec) const {
  const auto found = numbers_.find(spec);
  return found != numbers_.end() ? found->second : kUnknown;
}

void Cuts::learn(const std::vector<py::object>& specs, size_t in_use) {
  std::vector<py::object> dropped;
  py::object forgotten;
  if (numbers_.size() > 2 * in_use) {
    numbers_.clear();
    extents_.clear();
    dropped = std::exchange(known_, {});
    forgotten = std::exchange(by_cut_, {});
  }
  // All of this is Python code, in whose midst another step may learn, and forget.
  for (const py::object& spec : specs) {
    const py::object placements = spec.attr("placements");
    int number = kUncovered;
    if (is_covered(placements)) {
      const auto cut = py::make_tuple(spec.attr("mesh"), placements,
                                      py::getattr(spec, "shard_order", py::none()));
      if (!by_cut_) by_cut_ = py::dict();
      const py::object cuts = by_cut_;
      number = cuts.attr("setdefault")(cut, ++newest_).cast<int>();
      if (!cuts.is(by_cut_)) continue;  // to be learned again
    }
    if (numbers_.emplace(spec.ptr(), number).second) known_.push_back(spec);
  }
}

const Extent* Cuts::extent_of(PyObject* spec) const {
  const auto found = extents_.find(spec);
  return found != extents_.end() ? &found->second : nullptr;
}

void Cuts::learn_extents(const std::vector<py::object>& specs) {
  const auto placed = py::module_::import("torch.distributed.tensor._utils")
                          .attr("compute_local_shape_and_global_offset");
  const auto types = py::module_::import("torch.distributed.tensor.placement_types");
  for (const py::object& spec : specs) {
    const py::object shape = spec.attr("shape");
    for (const py::handle placement : spec.attr("placements")) {
      const py::type type = py::type::of(placement);
      if (type.is(types.attr("Shard")) || type.is(types.attr("Replicate"))) continue;
      throw std::runtime_error(
          "stochastic_rounding=True can't tell which elements of the whole a " +
          std::string("DTensor's piece has that is placed by ") + std::string(py::repr(placement)));
    }
    const py::tuple found = placed(shape, spec.attr("mesh"), spec.attr("placements"));
    Extent extent{shape.cast<std::vector<int64_t>>(), found[1].cast<std::vector<int64_t>>()};
    if (numbers_.count(spec.ptr()) != 0) extents_[spec.ptr()] = std::move(extent);
  }
}

namespace {

// The number of a spec. An unknown spec is a need.
int cut_of(Reading& reading, PyObject* spec) {
  const int cut = reading.cache.cuts.number_of(spec);
  if (cut == Cuts::kUnknown) {
    reading.needs.specs.push_back(py::reinterpret_borrow<py::object>(spec));
  }
  return cut;
}

}  // namespace

const char* take_pieces(Reading& reading, const Slot& slot, Work& work, c10::TensorImpl*& param,
                        c10::TensorImpl*& grad) {
  c10::TensorImpl& whole = *param;
  const Piece piece = piece_of(slot.param);
  if (piece.local == nullptr || piece.spec == nullptr) {
    return by_user(reading, "a DTensor whose local tensor is not a plain one");
  }
  work.cut = cut_of(reading, piece.spec);
  if (work.cut == Cuts::kUnknown) return "its placements are to be compared";
  if (work.cut == Cuts::kUncovered) return "a placement other than Shard and Replicate";
  refuse_inference(reading, slot, "", whole);
  if (reading.groups[slot.group].precision.noisy &&
      reading.cache.cuts.extent_of(piece.spec) == nullptr) {
    reading.needs.extents.push_back(py::reinterpret_borrow<py::object>(piece.spec));
    return "its place in the whole is to be found";
  }
  param = piece.local;
  if (grad == nullptr) return nullptr;
  return take_piece(reading, slot, nullptr, object_of(*grad), work, grad);
}

const char* take_piece(Reading& reading, const Slot& slot, const char* key, PyObject* object,
                       const Work& work, c10::TensorImpl*& tensor) {
  if (object == nullptr || !is_dtensor(object)) {
    return key == nullptr ? "its gradient is not a DTensor" : "its state is not a DTensor";
  }
  const Piece piece = piece_of(object);
  if (piece.local == nullptr || piece.spec == nullptr) {
    return by_user(reading, "a DTensor whose local tensor is not a plain one");
  }
  if (piece.spec != piece_of(slot.param).spec) {
    const int cut = cut_of(reading, piece.spec);
    if (cut == Cuts::kUnknown) return "its placements are to be compared";
    if (cut != work.cut) {
      return key == nullptr ? "its gradient is placed otherwise" : "its state is placed otherwise";
    }
  }
  const auto what = [&] {
    return key == nullptr ? ": its gradient" : std::string(": state['") + key + "']";
  };
  const c10::TensorImpl& whole = impl_of(slot.param);
  if (!same_sizes(*tensor, whole)) {
    std::ostringstream text;
    text << name_of(reading, slot) << what() << " has shape " << tensor->sizes() << ", expected "
         << whole.sizes();
    throw std::runtime_error(text.str());
  }
  if (key != nullptr) refuse_inference(reading, slot, what(), *tensor);
  tensor = piece.local;
  return nullptr;
}

}  // namespace fusedopt
