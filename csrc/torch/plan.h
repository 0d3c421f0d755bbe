// The plan: one optimizer's Python objects, read and checked at every step, and turned into tables
// for a sweep.
#pragma once

#include <pybind11/pybind11.h>
#include <sys/types.h>
#include <torch/csrc/autograd/python_variable.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/layout.h"
#include "torch/dtensor.h"
#include "torch/fresh.h"
#include "torch/operand.h"
#include "torch/optimizers.h"
#include "torch/prefetch.h"

namespace fusedopt {

namespace py = pybind11;

// One parameter group's options, read anew at every step: users write to them.
struct Group {
  PyObject* dict;
  PyObject* params;
  Numbers numbers;
  c10::TensorImpl* on_device[kMaxOptions];  // where a number is, if not in `numbers`
  bool any_on_device;
  int count;  // of the numbers
  Variant variant;
  bool maximize;
  bool fused;  // fused=True was asked for: state["step"] is float32 then, as torch's
  bool capturable;
  bool has_capturable;     // the group has the option: torch's class refuses graphs without it
  const char* torch_only;  // why torch's own step takes the whole group, or null
};

// One parameter of one group. Pointers are borrowed: they are used only within one step, and in
// later ones while the dict that they were read from has the same version.
struct Slot {
  PyObject* param;
  PyObject* state;  // optimizer.state[param], or null
  int group;
  int index;
};

// Where else a slot's objects lay. Only prefetched in the next step, so they may be stale then; but
// not the state's, if its version is the same.
struct Traces {
  const void* autograd;
  uint64_t version;                 // of the state's dict
  PyObject* state[kMaxStates + 1];  // its values, the step last: they are these in that version
};

// A slot's tensors, checked. Kept until the next step, which compares addresses with it, and
// prefetches what lay where: its pointers are borrowed too, and read only within one step.
struct Work {
  const char* reason;  // why torch's own step takes it, or null
  bool ready;          // has a gradient, and no reason
  bool fresh;          // its state has to be created
  bool first;          // no step has been made with this state (matters where steps aren't counted)
  bool dense;          // all operands share one dense layout
  bool float_step;     // state["step"] is float32
  bool device_step;    // state["step"] is where the parameter is
  bool move_step;      // it is on the host, and has to be there
  bool moved;          // parameter or state lie elsewhere than in the last step
  const cpu::Kernel* usual_for;  // where all is as usual, the kernel that it was checked for
  Dtype dtype;
  int device;  // kHost, or the other device's number
  int cut;     // of a DTensor, whose pieces the operands are then; 0 for other tensors
  int64_t numel;
  int64_t extent;  // bytes, of parameter and states together; 0 where they are dense
  Operand operands[kMaxOperands];  // without tensor: fresh state
  Operand step;
  Dtype step_dtype;  // if it is on a device
  Traces traces;
};

// So it may share memory with it. A gradient has a storage; operands that aren't there have none.
inline bool shares_storage_with_gradient(const Work& work) {
  const c10::StorageImpl* grad = work.operands[1].storage;
  bool shared = work.operands[0].storage == grad;
  for (int k = 2; k < kMaxOperands; ++k) shared |= work.operands[k].storage == grad;
  return shared;
}

// Asks for what checking a slot will read, as far as it lies where the last step found it.
void prefetch_objects(const Slot& slot, const Work& last);

// Everything in one step that one kernel sweeps in one dtype on one device.
struct Bucket {
  Variant variant;
  Dtype dtype;
  int device;
  std::vector<TensorEntry> tensors;
  bool made_there;  // the device makes the rules, from `sources` and `numbers`
  std::vector<char> rules;
  std::vector<cuda::RuleSource> sources;
  std::vector<cuda::Number> numbers;
  std::vector<Layout> layouts;
  int32_t rule_count = 0;
  int group = -1;  // of the newest rule
  double step = 0;

  int64_t elements() const;
  bool takes(const Variant& of, const Work& work, bool there) const;
  void add_rule(const Group& of, int index, double at_step);
};

// A device beside the host that this step has met.
struct Device {
  int index;
  void* stream;
  bool capturing;
  at::Tensor memory;  // for the rules that it makes
  int64_t used;       // bytes of it
  // Of numbers on another device, in use until the step is launched.
  std::vector<std::pair<const c10::TensorImpl*, at::Tensor>> copies;
};

// What a GradScaler hands over: numbers, or where on a device they are.
struct Scaler {
  bool scaled = false;
  double scale = 1;
  bool overflow = false;
  const c10::TensorImpl* scale_at = nullptr;
  const c10::TensorImpl* found_inf_at = nullptr;
};

class Plan {
 public:
  explicit Plan(const std::string& optimizer);

  // One step of all parameters that the kernels cover. If some are not covered, nothing is changed
  // and they are returned as a list of (group index, [parameter index]); the caller has torch step
  // them and calls again with that list as `stepped_by_torch`, which is None at first.
  py::object step(const py::object& groups, const py::object& state, const py::dict& defaults,
                  const py::object& grad_scale, const py::object& found_inf,
                  const py::object& stepped_by_torch);

  // (group index, parameter index, reason) of each parameter; an empty reason means our kernel.
  py::list explain(const py::object& groups, const py::object& state);

  std::string optimizer() const { return optimizer_->name; }

 private:
  // groups.cpp: the options
  void read_groups(const py::object& groups);
  void read_group(PyObject* dict, int index, Group& group);
  template <typename Name>
  void read_option(PyObject* value, Group& group, int at, const Name& name);

  // plan.cpp: parameters and state
  void read_slots();
  std::unique_lock<std::mutex> lock();
  void read_states(PyObject* state);
  size_t entry_of(PyObject* key) const;
  void read_state(PyObject* dict, PyObject** values) const;
  py::object torch_parameters() const;
  void look_again(const py::object& state, const py::object& stepped_by_torch);
  void note_first_steps(const std::vector<Fresh>& made);

  // check.cpp: from objects to Work, or the reason why not
  void check(const py::object& state, const py::object& stepped_by_torch,
             std::vector<std::string>* errors = nullptr);
  const char* check_slot(const Slot& slot, c10::TensorImpl* grad, Work& work);
  const char* check_gradient(const Slot& slot, const c10::TensorImpl& grad,
                             const c10::TensorImpl& param) const;
  const char* check_state(const Slot& slot, const Shape& shape, Work& work);
  const char* check_state_tensor(const Slot& slot, const char* key, const c10::TensorImpl& tensor,
                                 const c10::TensorImpl& param, bool same_dtype) const;
  const char* check_step(const Slot& slot, PyObject* step, Work& work) const;
  void refuse_inference(const Slot& slot, const std::string& what,
                        const c10::TensorImpl& tensor) const;
  std::string name_of(const Slot& slot) const;

  // unchanged.cpp: the same in a few instructions, where nothing has changed
  bool is_unchanged(const Slot& slot, c10::TensorImpl* grad, Work& work, bool& stale) const;
  bool is_usual(const Work& work) const;

  // dtensor.cpp
  const char* take_pieces(const Slot& slot, Work& work, c10::TensorImpl*& param,
                          c10::TensorImpl*& grad);
  const char* take_piece(const Slot& slot, const char* key, PyObject* object, const Work& work,
                         c10::TensorImpl*& tensor);
  void enter_pieces(const Slot& slot, const Work& work, int operands, bool scaled,
                    TensorEntry& entry) const;

  // device.cpp: what is on a device, and stays there
  Scaler read_scaler(const py::object& grad_scale, const py::object& found_inf);
  const char* check_device(const Slot& slot, Work& work);
  bool read_back(Scaler& scaler);
  void prepare_devices(const Scaler& scaler);
  Device& device_of(int index);
  void* address_on(Device& device, const c10::TensorImpl* tensor) const;
  void add_source(const Work& work, int group, double step, Bucket& bucket);
  void launch(const Bucket& bucket, const Table& table, const Scaler& scaler);

  // overlap.cpp
  bool shares_memory_with_gradient(const Work& work) const;
  void measure_extent(Work& work) const;
  void find_overlaps();

  // fresh.cpp: state that isn't there yet
  bool create_states(const py::object& state, const py::dict& defaults, std::vector<Fresh>& made);
  std::vector<Fresh> fill_holes(std::vector<Fresh> made, double initial) const;
  void fill_state(Fresh& fresh, double initial) const;

  // commit.cpp: what changes something
  bool separate_gradients();
  void fill_buckets(bool scaled);
  int32_t add_layout(const Work& work, int operands, Bucket& bucket);
  Bucket& bucket_for(const Variant& variant, const Work& work, bool there);
  void sweep(const Scaler& scaler);

  const Optimizer* optimizer_;
  std::vector<PyObject*> option_keys_;
  std::vector<PyObject*> flag_keys_;
  std::vector<PyObject*> state_keys_;
  PyObject* step_key_;
  std::vector<PyObject*> entry_keys_;  // the state keys, then the step
  struct Lock {
    std::mutex mutex;
    std::atomic<std::thread::id> owner{};
    pid_t process;
  };
  Lock* lock_;  // left behind, not freed, where a fork has copied it locked
  std::vector<py::object>
      held_;  // groups and lists of this step, so that no Python code frees them
  std::vector<Group> groups_;
  std::vector<Slot> slots_;
  std::vector<int> state_order_;  // the slot of each entry of optimizer.state, as last seen
  uint64_t states_version_ = 0;   // the version of optimizer.state in which the slots' are these
  std::vector<Work> works_;       // by slot
  std::vector<int> ready_;        // the slots that the kernels step
  std::vector<int> overlapping_;  // the slots that may share memory with another
  bool overlaps_known_ = false;
  bool any_for_torch_ = false;
  bool any_fresh_ = false;
  bool scaled_there_ = false;    // whether to step is known on the device only
  std::vector<Device> devices_;  // of this step
  Cuts cuts_;
  std::deque<Bucket> buckets_;
  std::deque<LayoutBuffer> layouts_;
};

}  // namespace fusedopt
