// Choosing an average's kernel: reads a model's attributes.
#include "torch/formula.h"

#include <c10/core/DefaultDtype.h>

#include "cpu/passes.h"
#include "rules/average.h"

namespace fusedopt {

namespace {

bool is_default_double() {
  return c10::get_default_dtype_as_scalartype() == c10::ScalarType::Double;
}

Formula formula_with(const Function& function, int64_t num_averaged, double reciprocal) {
  const double count = static_cast<double>(num_averaged) + 1;
  const double rest = function.decay ? 1 - *function.decay : reciprocal;
  if (function.multi) return {function, count, &cpu::kAverage, {rest}, false};
  if (function.decay) return {function, count, &cpu::kWeighted, {*function.decay, rest}, false};
  return {function, count, &cpu::kMean, {count}, false};
}

template <typename T>
void average_as(const Formula& formula, int64_t* averages, const int64_t* newest, int64_t count) {
  const std::optional<double> decay = formula.function.decay;
  if (!decay) {
    const Mean<T> mean(MeanOptions{formula.count}, 1);
    for (int64_t i = 0; i < count; ++i) {
      const auto ahead = static_cast<int64_t>(static_cast<uint64_t>(newest[i]) -
                                              static_cast<uint64_t>(averages[i]));
      averages[i] = static_cast<int64_t>(mean.moved(T(averages[i]), T(ahead)));
    }
    return;
  }
  const Weighted<T> weighted(WeightedOptions{*decay, 1 - *decay}, 1);
  for (int64_t i = 0; i < count; ++i) {
    T average = T(averages[i]);
    weighted(average, T(newest[i]), nullptr);
    averages[i] = static_cast<int64_t>(average);
  }
}

}  // namespace

std::optional<Function> function_of(PyObject* object) {
  static PyObject* kept = nullptr;
  const PyObject* type = imported(kept, "fusedopt.swa_utils", "_Average");
  static PyObject* const multi_key = intern("multi");
  static PyObject* const decay_key = intern("decay");
  if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != type) return {};
  const py::object attributes = dict_of(object);
  PyObject* multi = find(attributes, multi_key);
  PyObject* decay = find(attributes, decay_key);
  if ((multi != Py_True && multi != Py_False) || decay == nullptr) return {};
  if (decay == Py_None) return Function{multi == Py_True, {}};
  if (!PyFloat_CheckExact(decay)) return {};
  return Function{multi == Py_True, PyFloat_AS_DOUBLE(decay)};
}

bool Formula::takes_integers() const { return !function.multi || function.decay.has_value(); }

void Formula::average_integers(int64_t* averages, const int64_t* newest, int64_t count) const {
  is_default_double() ? average_as<double>(*this, averages, newest, count)
                      : average_as<float>(*this, averages, newest, count);
}

std::optional<double> reciprocal_after(int64_t num_averaged) {
  const auto count = static_cast<int64_t>(static_cast<uint64_t>(num_averaged) + 1);
  if (is_default_double()) return 1.0 / static_cast<double>(count);
  if (c10::get_default_dtype_as_scalartype() != c10::ScalarType::Float) return {};
  return 1.0f / static_cast<float>(count);
}

std::optional<Formula> formula_of(const py::object& attributes, int64_t num_averaged) {
  static PyObject* const multi_avg_fn = intern("multi_avg_fn");
  static PyObject* const avg_fn = intern("avg_fn");
  static PyObject* const own_dtype = intern("_fusedopt_dtype");
  const auto of_lists = py::reinterpret_borrow<py::object>(find(attributes, multi_avg_fn));
  const auto of_tensors = py::reinterpret_borrow<py::object>(find(attributes, avg_fn));
  const auto reciprocal = reciprocal_after(num_averaged);
  if (!of_lists || !of_tensors || !reciprocal) return {};
  // Without either, torch takes get_swa_avg_fn() on the CPU.
  std::optional<Function> function = Function{false, {}};
  if (!of_lists.is_none()) {
    function = function_of(of_lists.ptr());
    if (!function || !function->multi) return {};
  } else if (!of_tensors.is_none()) {
    function = function_of(of_tensors.ptr());
    if (!function || function->multi) return {};
  }
  Formula formula = formula_with(*function, num_averaged, *reciprocal);
  PyObject* dtype = find(attributes, own_dtype);
  formula.mixed = dtype != nullptr && dtype != Py_None;
  return formula;
}

}  // namespace fusedopt
