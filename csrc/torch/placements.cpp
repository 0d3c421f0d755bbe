// Comparing DTensors' placements: reads them, and runs torch's Python code.
#include "torch/placements.h"

#include <unordered_set>

#include "torch/operand.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

void note_specs(const std::vector<Covered>& all, std::unordered_set<PyObject*>& seen,
                std::vector<py::object>& specs) {
  for (const Covered& item : all) {
    if (item.whole == nullptr) continue;
    PyObject* spec = piece_of(item.whole).spec;
    if (spec != nullptr && seen.insert(spec).second) {
      specs.push_back(py::reinterpret_borrow<py::object>(spec));
    }
  }
}

}  // namespace

void Placements::learn(Members& averages, Members& newest) {
  std::unordered_set<PyObject*> seen;
  std::vector<py::object> specs;
  for (const Members* members : {&averages, &newest}) {
    note_specs(members->parameters, seen, specs);
    note_specs(members->buffers, seen, specs);
  }
  if (specs.empty()) return;
  averages.own();
  newest.own();
  cuts_.learn(specs, specs.size());
}

bool Placements::alike(const Covered& one, const Covered& other) const {
  if (one.whole == nullptr || other.whole == nullptr) return one.whole == other.whole;
  const int cut = cuts_.number_of(piece_of(one.whole).spec);
  return cut >= 0 && cut == cuts_.number_of(piece_of(other.whole).spec) &&
         same_sizes(impl_of(one.whole), impl_of(other.whole));
}

}  // namespace fusedopt
