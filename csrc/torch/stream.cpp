// From tensors to the stream kernel.
#include "torch/stream.h"

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/stream.h"
#include "torch/parallel.h"
#include "torch/python.h"

namespace fusedopt {

namespace {

at::Tensor checked(pybind11::handle object) {
  if (!is_tensor(object.ptr())) throw pybind11::type_error("stream takes tensors");
  const at::Tensor& tensor = THPVariable_Unpack(object.ptr());
  if (!tensor.device().is_cpu() || tensor.scalar_type() != at::kInt || !tensor.is_contiguous()) {
    throw pybind11::value_error("stream takes contiguous int32 tensors on the CPU");
  }
  return tensor;
}

}  // namespace

void stream(const pybind11::object& read, const pybind11::list& updated) {
  std::vector<at::Tensor> held = {checked(read)};  // the list may change meanwhile
  const at::Tensor source = held.front();
  cpu::Streams streams{};
  streams.read = static_cast<const uint32_t*>(source.const_data_ptr());
  streams.count = static_cast<int>(updated.size());
  streams.words = source.numel();
  if (streams.count < 1 || streams.count > cpu::kMaxStreams) {
    throw pybind11::value_error("stream updates from one to four tensors");
  }
  for (int k = 0; k < streams.count; ++k) {
    const at::Tensor target = held.emplace_back(checked(updated[k]));
    if (target.numel() != streams.words) throw pybind11::value_error("stream: lengths differ");
    streams.updated[k] = static_cast<uint32_t*>(target.mutable_data_ptr());
  }
  const pybind11::gil_scoped_release release;
  cpu::stream(streams, parallel);
}

void stream_read(const pybind11::object& read) {
  const at::Tensor source = checked(read);
  cpu::Streams streams{};
  streams.read = static_cast<const uint32_t*>(source.const_data_ptr());
  streams.words = source.numel();
  const pybind11::gil_scoped_release release;
  cpu::stream(streams, parallel);
}

}  // namespace fusedopt
