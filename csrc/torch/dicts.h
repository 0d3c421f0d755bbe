// Whether a dict is as it was when it was noted: it needn't be read again then, and it still holds
// what it held. Reads a dict's head, or what Python has told of dicts.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>

// Forced on Python 3.12 and 3.13 for the tests (CMakeLists.txt).
#ifndef FUSEDOPT_DICT_WATCH
#define FUSEDOPT_DICT_WATCH (PY_VERSION_HEX >= 0x030E0000)
#endif

namespace fusedopt {

// Are its values an object's attributes, which Python may change without the dict's knowing?
inline bool holds_attributes(PyObject* dict) {
  return reinterpret_cast<const PyDictObject*>(dict)->ma_values != nullptr;
}

#if FUSEDOPT_DICT_WATCH

static_assert(PY_VERSION_HEX >= 0x030C0000, "Python watches dicts from 3.12 on");

// Counts the changes of all dicts that are watched; read and written under the interpreter's lock.
inline uint64_t dict_changes = 1;

// Lets Python call us before it changes or frees the dict. False: it won't.
bool watch(PyObject* dict);

// Is the dict that was watched at that count still there, and unchanged since?
bool is_unchanged_since(uint64_t changes, PyObject* dict);

// A dict is looked up only where any that is watched has changed: in most steps none has.
class DictState {
 public:
  // Is it the dict that was noted, as it was?
  bool is_of(PyObject* dict) {
    if (dict != dict_) return false;
    if (changes_ == dict_changes) return true;
    if (!is_unchanged_since(changes_, dict)) return false;
    changes_ = dict_changes;
    return true;
  }

  // The same, and then notes it.
  bool still(PyObject* dict) {
    if (is_of(dict)) return true;
    changes_ = watch(dict) ? dict_changes : 0;
    dict_ = dict;
    return false;
  }

 private:
  PyObject* dict_ = nullptr;
  uint64_t changes_ = 0;  // so many when it was as noted; 0: none is
};

#else

// A dict's version is a number that neither this dict in another state nor any other dict ever has.
class DictState {
 public:
  // Is it the dict that was noted, as it was?
  bool is_of(PyObject* dict) const {
    return dict != nullptr && PyDict_Check(dict) && version_ != 0 && version_ == version_of(dict);
  }

  // The same, and then notes it.
  bool still(PyObject* dict) {
    const uint64_t version = version_of(dict);
    return std::exchange(version_, version) == version && version != 0;
  }

 private:
  static uint64_t version_of(PyObject* dict) {
    if (holds_attributes(dict)) return 0;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    return reinterpret_cast<const PyDictObject*>(dict)->ma_version_tag;
#pragma GCC diagnostic pop
  }

  uint64_t version_ = 0;  // 0: none is noted
};

#endif

}  // namespace fusedopt
