// Providing what the kernels need: state that isn't there yet, memory and gradients of a tensor's
// own. May fail and may run Python code; what it has made is taken back if the step fails.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DefaultDtype.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/tuning.h"
#include "torch/python.h"
#include "torch/satisfy.h"

namespace fusedopt {

namespace {

// The same number on a device.
at::Tensor number_on_device(const at::Tensor& number, c10::Device device) {
  const auto dtype = number.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::full({}, number.item(), at::TensorOptions().dtype(dtype).device(device));
}

double initial_value(const State& state, const Group& group, const py::object& optimizer) {
  if (state.from_default != nullptr) {
    return optimizer.attr("defaults")[state.from_default].cast<double>();
  }
  if (state.from_group == nullptr) return state.value;
  const auto options = py::reinterpret_borrow<py::object>(group.dict);
  return py::float_(options[state.from_group]);
}

at::Tensor new_number(double value, const at::TensorOptions& options) {
  const at::AutoDispatchBelowADInplaceOrView uncounted;  // full counts a version
  return at::full({}, value, options);
}

void fill_state(const Keys& keys, Fresh& fresh, const py::object& optimizer) {
  const Group& group = *fresh.group;
  for (size_t k = 0; k < fresh.moved.size(); ++k) {
    if (!fresh.moved[k]) continue;
    const at::Tensor& number = THPVariable_Unpack(fresh.moved[k].ptr());
    fresh.entries.emplace_back(keys.entries[keys.scalar(k)],
                               number_on_device(number, fresh.scalar_device));
  }
  const bool wide = !group.fused && c10::get_default_dtype() == caffe2::TypeMeta::Make<double>();
  const auto options =
      at::TensorOptions().dtype(wide ? at::kDouble : at::kFloat).device(fresh.scalar_device);
  if (fresh.roundings) {
    fresh.entries.emplace_back(keys.entries[keys.scalar(0)], new_number(0, options));
  }
  for (size_t k = 0; fresh.states && k < keys.optimizer->scalars.size(); ++k) {
    const double initial = initial_value(keys.optimizer->scalars[k], group, optimizer);
    const double stored = wide ? initial : static_cast<float>(initial);  // full refuses to overflow
    fresh.entries.emplace_back(keys.entries[keys.scalar(k)], new_number(stored, options));
  }
  const at::Tensor param = THPVariable_Unpack(fresh.param.ptr());
  const auto like = at::TensorOptions().dtype(group.precision.state_dtype);
  for (int k = 0; fresh.states && k < group.variant.cpu->states; ++k) {
    const int which = group.variant.keys[k];
    const double initial = initial_value(keys.optimizer->states[which], group, optimizer);
    fresh.entries.emplace_back(keys.states[which],
                               at::full_like(param, initial, like, at::MemoryFormat::Preserve));
  }
  if (!fresh.remainder) return;
  const auto halves = at::TensorOptions().dtype(at::kShort);
  fresh.entries.emplace_back(keys.entries[keys.remainder()],
                             at::zeros_like(param, halves, at::MemoryFormat::Preserve));
}

// Makes the same state of small parameters once more, to be dropped when the other is made. This
// copy takes the holes that other code has left all over the heap, so that the other lies together.
std::vector<Fresh> fill_holes(const Keys& keys, std::vector<Fresh> made,
                              const py::object& optimizer) {
  const auto elsewhere = [](const Fresh& fresh) {
    const c10::TensorImpl& param = impl_of(fresh.param.ptr());
    return !is_plain_cpu(param) || param.numel() > kSmallStateBytes / int64_t(param.itemsize());
  };
  made.erase(std::remove_if(made.begin(), made.end(), elsewhere), made.end());
  for (Fresh& fresh : made) fill_state(keys, fresh, optimizer);
  return made;
}

// optimizer.state[param], which a defaultdict makes, as it does for torch. Null: there is none.
py::object own_state(const py::object& state, const py::object& param) {
  auto own = py::reinterpret_steal<py::object>(PyObject_GetItem(state.ptr(), param.ptr()));
  if (!own && PyErr_ExceptionMatches(PyExc_KeyError)) {
    PyErr_Clear();
  } else if (!own) {
    throw py::error_already_set();
  }
  return own;
}

// Enters new state in optimizer.state, unless a parameter has state by now, at which the step then
// looks.
void put_in_place(const py::object& state, Fresh& fresh) {
  py::object own = fresh.state;
  bool is_new = false;
  if (!own) {
    own = own_state(state, fresh.param);
    is_new = !own;
    if (is_new) own = py::dict();
    if (!PyDict_Check(own.ptr()) || PyDict_GET_SIZE(own.ptr()) != 0) return;
  }
  for (const auto& [key, tensor] : fresh.entries) {
    PyObject* before = PyDict_GetItemWithError(own.ptr(), key);
    if (before == nullptr && PyErr_Occurred()) throw py::error_already_set();
    fresh.before.push_back(py::reinterpret_borrow<py::object>(before));
  }
  fresh.placed = true;
  for (const auto& [key, tensor] : fresh.entries) {
    const auto value = py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
    if (!value || PyObject_SetItem(own.ptr(), key, value.ptr()) != 0) {
      throw py::error_already_set();
    }
  }
  if (is_new && PyObject_SetItem(state.ptr(), fresh.param.ptr(), own.ptr()) != 0) {
    throw py::error_already_set();
  }
}

// Makes all missing state before putting any of it in place: running out of memory leaves nothing
// half done.
void create_states(const Keys& keys, std::vector<Fresh> missing, const py::object& state,
                   const py::object& optimizer, std::vector<Fresh>& made) {
  const std::vector<Fresh> filling = fill_holes(keys, missing, optimizer);
  for (Fresh& fresh : missing) fill_state(keys, fresh, optimizer);
  for (Fresh& fresh : missing) {
    made.push_back(std::move(fresh));
    put_in_place(state, made.back());
  }
}

// The lock under which autograd accumulates a gradient, without the interpreter's.
struct Accumulating : torch::autograd::Node {
  static std::mutex& lock_of(torch::autograd::Node& node) { return node.*(&Accumulating::mutex_); }
};

// Gives a parameter another gradient, and returns the gradient before, to which another thread may
// be adding. If the step is a hook of that addition, this thread holds the lock itself, and mustn't
// wait for ever.
at::Tensor exchange_gradient(const at::Tensor& param, const at::Tensor& gradient) {
  const auto node = torch::autograd::impl::try_get_grad_accumulator(param);
  std::unique_lock<std::mutex> locked;
  if (node) {
    locked = std::unique_lock<std::mutex>(Accumulating::lock_of(*node), std::defer_lock);
    for (int i = 0; !locked.try_lock() && i < 100; ++i) {
      const py::gil_scoped_release release;  // a hook may wait for it under the lock
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }
  return std::exchange(param.mutable_grad(), gradient);
}

// A gradient that is written (unscaled) must not be read under another name. So where a gradient is
// expanded, or belongs to several parameters, each parameter gets a copy of its own.
void separate(const std::vector<at::Tensor>& params) {
  std::vector<at::Tensor> copies;
  for (const at::Tensor& param : params) {
    const at::Tensor grad = param.grad();
    const bool alike = grad.defined() && grad.layout() == c10::kStrided &&
                       grad.dtype() == param.dtype() &&
                       !grad.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python);
    if (!alike) {
      copies.push_back(grad.defined() ? grad.clone() : grad);
      continue;
    }
    copies.push_back(at::zeros_like(param, {}, at::MemoryFormat::Preserve));
    copies.back().copy_(grad);
  }
  std::vector<at::Tensor> before;  // let go after all is done, because that may run Python code
  for (size_t i = 0; i < params.size(); ++i) {
    before.push_back(exchange_gradient(params[i], copies[i]));
  }
}

}  // namespace

void provide(const Keys& keys, Needs& needs, const py::object& state, const py::object& optimizer,
             std::vector<Fresh>& made) {
  const at::NoGradGuard no_grad;
  for (const at::Tensor& tensor : needs.lazy_copies) {
    tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl()->mutable_data();
  }
  if (!needs.fresh.empty()) {
    create_states(keys, std::move(needs.fresh), state, optimizer, made);
  }
  separate(needs.shared_gradients);
}

void take_back(const py::object& state, std::vector<Fresh>& made) {
  const auto ignore = [](int failed) {
    if (failed != 0) PyErr_Clear();
  };
  for (const Fresh& fresh : made) {
    if (!fresh.placed) continue;
    if (!fresh.state) {
      ignore(PyObject_DelItem(state.ptr(), fresh.param.ptr()));
      continue;
    }
    for (size_t i = 0; i < fresh.entries.size(); ++i) {
      PyObject* key = fresh.entries[i].first;
      PyObject* before = fresh.before[i].ptr();
      ignore(before != nullptr ? PyObject_SetItem(fresh.state.ptr(), key, before)
                               : PyObject_DelItem(fresh.state.ptr(), key));
    }
  }
  made.clear();
}

}  // namespace fusedopt
