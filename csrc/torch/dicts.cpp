// Watching dicts: marks a dict, and notes what Python tells of it. Runs no Python code.
#include "torch/dicts.h"

#include <unordered_map>

namespace fusedopt {

#if FUSEDOPT_DICT_WATCH

namespace {

// How many changes there had been when a dict was changed last, for each that is watched. Never
// freed: Python frees dicts until its very end.
std::unordered_map<PyObject*, uint64_t>& last_changes() {
  static auto* const all = new std::unordered_map<PyObject*, uint64_t>;
  return *all;
}

// Python tells of a change just before it makes it, and runs no Python code in between; another
// library's watcher that steps there would hide the change from us.
int note_change(PyDict_WatchEvent event, PyObject* dict, PyObject*, PyObject*) {
  ++dict_changes;
  const auto found = last_changes().find(dict);
  if (found == last_changes().end()) return 0;
  if (event == PyDict_EVENT_DEALLOCATED) {
    last_changes().erase(found);
  } else {
    found->second = dict_changes;
  }
  return 0;
}

}  // namespace

// Python has room for eight watchers, its own among them. Where others have taken it, dicts are
// read at each step.
bool watch(PyObject* dict) {
  if (holds_attributes(dict)) return false;  // 3.13 doesn't tell of all their changes
  static const int watcher = PyDict_AddWatcher(note_change);
  if (watcher < 0 || PyDict_Watch(watcher, dict) != 0) {
    PyErr_Clear();
    return false;
  }
  last_changes().emplace(dict, dict_changes);  // unless it was watched before
  return true;
}

bool is_unchanged_since(uint64_t changes, PyObject* dict) {
  const auto found = last_changes().find(dict);
  return found != last_changes().end() && found->second <= changes;
}

#endif

}  // namespace fusedopt
