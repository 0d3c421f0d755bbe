// The plan: steps one optimizer's parameters, by looking at its Python objects, satisfying what is
// needed, and sweeping the tables built of them.
#pragma once

#include <pybind11/pybind11.h>
#include <sys/types.h>

#include <memory>
#include <mutex>
#include <string>

#include "torch/build.h"
#include "torch/originals.h"
#include "torch/reading.h"

namespace fusedopt {

namespace py = pybind11;

class Plan {
 public:
  explicit Plan(const std::string& optimizer);

  // One step of all parameters that the kernels cover; None. If some are not covered, nothing is
  // changed and those parameters are returned as a list of (group index, group, [(parameter index,
  // parameter)]); the caller has torch step them and calls again, with a list of the parameters
  // that torch has stepped so far as `stepped_by_torch`, which is None at first. True: the caller
  // has torch step the whole optimizer as it is, since torch's step would run code of the user's,
  // which may see and do anything. `scaler` is a GradScaler's grad_scale and found_inf, or None and
  // None. With `max_grad_norm`, the step clips by the gradients' norm and sets the optimizer's
  // attribute `grad_norm`; or it returns False: the caller computes the norm, and calls again with
  // the factor of all gradients as `clip`.
  py::object step(const py::object& optimizer, const py::tuple& scaler,
                  const py::object& stepped_by_torch, const py::object& max_grad_norm,
                  const py::object& clip);

  // (group index, parameter index, reason) of each parameter; an empty reason means our kernel.
  py::list explain(const py::object& optimizer);

  std::string optimizer() const { return keys_.optimizer->name; }

 private:
  struct Call;
  struct Row;
  enum class Outcome { kAgain, kForTorch, kAllForTorch, kForNorm, kDone };

  Outcome look_once(Call& call, bool patient);
  const char* read(Call& call);
  std::unique_lock<std::mutex> lock();

  struct Lock {
    std::mutex mutex;
    pid_t process;
  };

  Keys keys_;
  Original* original_;
  Cache cache_;
  Tables tables_;
  std::unique_ptr<Lock> lock_;
};

}  // namespace fusedopt
