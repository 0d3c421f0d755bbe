// Watching dicts: marks a dict, and counts what Python tells. Runs no Python code.
#include "torch/dicts.h"

namespace fusedopt {

#if FUSEDOPT_DICT_WATCH

namespace {

// Python tells of a change just before it makes it, and runs no Python code in between; another
// library's watcher that steps there would hide the change from us.
int count_change(PyDict_WatchEvent, PyObject*, PyObject*, PyObject*) {
  ++dict_changes;
  return 0;
}

}  // namespace

// Python has room for eight watchers, its own among them. Where others have taken it, dicts are
// read at each step.
bool watch(PyObject* dict) {
  if (holds_attributes(dict)) return false;  // 3.13 doesn't tell of all their changes
  static const int watcher = PyDict_AddWatcher(count_change);
  if (watcher >= 0 && PyDict_Watch(watcher, dict) == 0) return true;
  PyErr_Clear();
  return false;
}

#endif

}  // namespace fusedopt
