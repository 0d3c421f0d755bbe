// What a step knows of an optimizer's tensors: look() writes it, and the later phases only read it.
#pragma once

#include <c10/core/ScalarType.h>
#include <torch/csrc/autograd/python_variable.h>

#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "torch/dicts.h"
#include "torch/dtensor.h"
#include "torch/groups.h"
#include "torch/needs.h"
#include "torch/operand.h"
#include "torch/overlap.h"
#include "torch/prefetch.h"

namespace fusedopt {

namespace py = pybind11;

// One parameter of one group. Pointers are borrowed: they are used only within one look, and in
// later looks while the dict from which they were read is as it was.
struct Slot {
  PyObject* param;
  PyObject* state;  // optimizer.state[param], or null
  int group;
  int index;
  bool is_tensor;  // by the object's type, and not by what the object says
};

// The most Keys::entries that an optimizer may have: all states, a step count and a remainder, or
// fewer states and more numbers. module.cpp compares.
inline constexpr int kMaxEntries = kMaxStates + 2;

// The addresses of a slot's other objects. The next step only prefetches from them, because they
// may be stale; the state's aren't while the state's dict is as it was.
struct Traces {
  const void* grad;              // autograd's pointer to the gradient
  DictState dict;                // the state's
  PyObject* state[kMaxEntries];  // the dict's values then, in Keys::entries' order
};

// A slot's tensors, checked. They are kept until the next step, which compares addresses with them,
// and prefetches what lay where. The pointers are borrowed too, and read only within one look.
//
// A step over many small tensors waits for memory, so what all optimizers use comes first, and
// bytes count: 152 more made a step of 1000 parameters 2 to 3.5 % slower.
struct Work {
  const char* reason;   // why torch's own step takes the parameter, or null
  uintptr_t usual_way;  // where all is as usual, the group's `way`; else 0
  int64_t numel;
  int64_t extent;               // bytes, of parameter and states together; 0 where they are dense
  Dtype dtype;                  // the parameter's; float64, if any operand has that
  int device;                   // kHost, or the other device's number
  int cut;                      // of a DTensor: the operands are its pieces; 0 for other tensors
  caffe2::TypeMeta usual_type;  // where all is as usual, the parameter's dtype
  bool ready;                   // the parameter has a gradient, and there is no reason
  bool fresh;                   // the state has to be created
  bool first;          // no step has been made with this state (matters where steps aren't counted)
  bool dense;          // all operands share one dense layout
  bool mixed;          // operands have several formats, or one of our own
  bool any_on_device;  // some single numbers of the state are on the parameter's device
  bool lacks_remainder;  // the group's precision needs it, and the state has none
  bool lacks_roundings;  // the same of the count of roundings
  bool move_scalars;     // some single numbers are on the host, and must be where the parameter is
  bool moved;            // parameter or state lie elsewhere than in the last step
  bool foreign;          // parameter or state are in memory that torch's allocators haven't made
  Format formats[kMaxOperands];
  c10::ScalarType number_types[1 + kMaxScalars];
  bool numbers_on_device[1 + kMaxScalars];  // on the parameter's device, and not the host
  Traces traces;
  // As many as the group has operands, and then the single numbers of the state: the step count
  // first, or how often noise has rounded. No tensor: the state is still to be made.
  Operand operands[kFirstState + kMaxEntries];
};

// One number of a state.
struct Scalar {
  const char* address;
  c10::ScalarType type;
  bool on_device;
};

FUSEDOPT_INLINE Scalar scalar_of(const Work& work, const Group& group, size_t number) {
  return {work.operands[group.operands + number].address, work.number_types[number],
          work.numbers_on_device[number]};
}

// Asks for the memory that a look at a slot will read, as far as all lies where the last step found
// it.
void prefetch_objects(const Group& group, const Slot& slot, const Work& last);

// A device beside the host that this step has met.
struct Device {
  int index;
  void* stream;
  bool capturing;
  at::Tensor memory;  // for the rules that the device makes
  int64_t used;       // bytes of the memory
  // Copies of numbers on another device, in use until the step is launched.
  std::vector<std::pair<const c10::TensorImpl*, at::Tensor>> copies;
};

// What gradients are divided by (a GradScaler's) and multiplied with (to clip): numbers, or the
// numbers' addresses on a device.
struct Scaler {
  bool scaled = false;
  double scale = 1;
  bool overflow = false;
  const c10::TensorImpl* scale_at = nullptr;
  const c10::TensorImpl* found_inf_at = nullptr;
  double clip = 1;
  const c10::TensorImpl* clip_at = nullptr;         // a float64
  const c10::TensorImpl* clip_elsewhere = nullptr;  // where no kernel reads: fetched if one steps
  std::vector<at::Tensor> held = {};                // what these are
};

// All that lives between steps: addresses, which a step compares before any use, and what was
// learned of objects that are owned for as long.
struct Cache {
  std::vector<Slot> slots;
  std::vector<Work> works;                 // by slot
  std::vector<int> state_order;            // the slot of each entry of optimizer.state
  std::vector<std::pair<int, int>> twins;  // slots of one parameter: the later one, and the first
  DictState states;                        // optimizer.state, when the slots' states were read
  Overlaps overlaps;
  Cuts cuts;
};

// What a step owns. It ends with the step, outside of all locks: what is let go may run Python
// code.
struct Owned {
  std::vector<c10::intrusive_ptr<c10::TensorImpl>> gradients;
  std::vector<c10::Storage> storages;
};

// What torch's code has to step of a group: the group's number and dict, and parameters with their
// places in its list. Objects, because a user's code may edit the lists before torch steps.
using Part = std::tuple<int, py::object, std::vector<std::pair<int, py::object>>>;

// How often torch's code has stepped each parameter. By the objects: while torch's step runs, a
// user's code may edit the lists, and a place is another parameter's then.
class Done {
 public:
  void add(const PyObject* param) { ++times_[param]; }
  bool empty() const { return times_.empty(); }

  // Is this one of the times? To be asked once for each place, in the lists' order.
  bool take(const PyObject* param) {
    const auto found = times_.find(param);
    return found != times_.end() && found->second-- > 0;
  }

 private:
  std::unordered_map<const PyObject*, int> times_;
};

struct Reading {
  const Keys& keys;
  Groups& read;
  Cache& cache;
  Owned& owned;
  Needs& needs;
  const Scaler& scaler;
  bool waited;   // for the numbers of groups that are on a device
  bool patient;  // missing state and shared gradients are needs; else torch steps the parameters
  bool owning;   // other threads may replace gradients meanwhile

  std::vector<Group>& groups = read.all;
  std::vector<Slot>& slots() const { return cache.slots; }
  std::vector<Work>& works() const { return cache.works; }
  const Group& group_of(int slot) const { return groups[cache.slots[slot].group]; }

  std::vector<int> ready = {};    // the slots that the kernels step
  std::vector<int> checked = {};  // ready slots where something has changed since the last step
  bool any_for_torch = false;
  const char* whole = nullptr;           // why torch's own step takes all slots, or null
  std::vector<Device> devices = {};      // that this step meets
  std::vector<std::string> errors = {};  // by slot, if they are collected
};

}  // namespace fusedopt
