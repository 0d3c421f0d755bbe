// Learning what a step must know of objects: may run Python code, and writes what was learned.
#include "torch/classes.h"
#include "torch/python.h"
#include "torch/satisfy.h"

namespace fusedopt {

void learn(const Needs& needs, Cache& cache) {
  for (const py::object& type : needs.classes) {
    learn_class(reinterpret_cast<PyTypeObject*>(type.ptr()));
  }
  if (!needs.specs.empty()) {
    cache.cuts.learn(needs.specs, cache.slots.size() * (kMaxStates + 2));
  }
  if (!needs.extents.empty()) cache.cuts.learn_extents(needs.extents);
  for (const Untried& kernel : needs.kernels) try_kernel(kernel);
}

}  // namespace fusedopt
