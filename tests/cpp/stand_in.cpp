// A device for tests, in the place of CUDA: its memory is the host's, its launches run on the CPU
// sweep, and captured ones run when they are replayed. So the plan's way with devices (what stays
// there, what waits for them, which stream) is tested where there is no GPU.
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <cstdlib>
#include <vector>

#include "cpu/kernel.h"
#include "cuda/norm.cuh"
#include "cuda/prepare.cuh"
#include "torch/accelerator.h"

namespace {

using namespace fusedopt;
namespace py = pybind11;

constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr int kDevices = 2;

int current_device = 0;
int64_t waits = 0;  // how often the host asked for a number
bool capturing = false;
int allocations = -1;  // that there is memory for; below 0: any number

// Streams are told apart by their handles only.
char streams[kDevices];

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    current_device = device.index();
    return before;
  }
  c10::Device getDevice() const override {
    return {kType, static_cast<c10::DeviceIndex>(current_device)};
  }
  void setDevice(c10::Device device) const override { current_device = device.index(); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    current_device = device.index();
  }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return &streams[stream.device_index()];
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    TORCH_CHECK_WITH(OutOfMemoryError, allocations != 0, "the stand-in is out of memory");
    --allocations;
    void* data = std::aligned_alloc(64, (bytes + 64) / 64 * 64);
    return {data, data, &std::free, Guard().getDevice()};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
Memory memory;
REGISTER_ALLOCATOR(kType, &memory);

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory,
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

// The same memory as a tensor on the host.
at::Tensor on_host(const at::Tensor& tensor) {
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(),
                       at::TensorOptions().dtype(tensor.dtype()));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  if (to.numel() != 0) on_host(to).copy_(on_host(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& tensor) {
  ++waits;
  return on_host(tensor).item();
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("_local_scalar_dense", local_scalar_dense);
}

void fall_back(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::native::cpu_fallback(op, stack);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fall_back>());
}

// What a launch was given, copied, because a graph replays it when the plan is gone.
struct Launch {
  const cpu::Kernel* kernel;
  Dtype dtype;
  int device;
  void* stream;
  Table table;
  cuda::Scalars scalars;
  cuda::DeviceRules made;
  std::vector<TensorEntry> tensors;
  std::vector<char> rules;
  std::vector<char> memory;  // a graph's own, for the rules it makes
  std::vector<cuda::Number> numbers;
  std::vector<cuda::RuleSource> sources;
  std::vector<uint64_t> keys = {};
  std::vector<Format> formats = {};
};
std::vector<Launch> graph;
std::vector<std::pair<int, bool>> launches;  // the device, and was it its stream?

// In the form of PrepareArguments.
struct Packed {
  explicit Packed(const cuda::Number& from) : type(cuda::kGiven) {
    std::memcpy(&bits, &from.value, sizeof bits);
    if (from.address == nullptr) return;
    bits = reinterpret_cast<uint64_t>(from.address);
    type = static_cast<uint8_t>(from.dtype);
  }
  double value() const { return cuda::number_at(bits, type); }

  uint64_t bits;
  uint8_t type;
};

// As prepare.cuh's count_up, of which a kernel's function pointer isn't told.
Counts count_up(const cpu::Kernel& kernel, const std::vector<double>& options,
                const cuda::RuleSource& source) {
  const Packed step(source.step);
  Counts counts{cuda::count_step(step.bits, step.type), {}, {}, {}};
  for (int k = 0; k < kMaxScalars; ++k) {
    const Packed scalar(source.scalars[k]);
    counts.before[k] = scalar.value();
    counts.is_double[k] = source.scalars[k].dtype == Dtype::kFloat64;
  }
  kernel.advance(options.data(), counts);
  for (int k = 0; k < kMaxScalars; ++k) {
    const Packed scalar(source.scalars[k]);
    if (source.scalars[k].address == nullptr) continue;
    cuda::store_number(scalar.bits, scalar.type, counts.after[k]);
    counts.after[k] = scalar.value();
  }
  return counts;
}

void execute(const Launch& launch) {
  if (launch.scalars.found_inf != nullptr && *launch.scalars.found_inf != 0) return;
  Table table = launch.table;
  const int compute = cpu::Kernel::compute(launch.dtype);
  const size_t bytes = launch.kernel->rule_bytes[compute];
  if (launch.scalars.rules != nullptr) {
    char* rule = static_cast<char*>(launch.made.memory);
    uint64_t* key = launch.made.keys;
    for (const cuda::RuleSource& source : launch.sources) {
      std::vector<double> options;
      for (size_t i = 0; i < launch.kernel->options; ++i) {
        options.push_back(
            Packed(launch.numbers[source.group * launch.kernel->options + i]).value());
      }
      const Counts counts = count_up(*launch.kernel, options, source);
      double rounding = counts.step;
      if (launch.made.roundings) {
        const Packed roundings(source.roundings);
        rounding = cuda::count_step(roundings.bits, roundings.type);
      }
      if (launch.made.keys != nullptr) *key++ = step_key(source.seed, rounding);
      launch.kernel->prepare[compute](options.data(), counts, kLargest[1], rule);
      rule += bytes;
    }
    table.rules = launch.made.memory;
    table.keys = launch.made.keys;
  }
  if (launch.scalars.grad_scale != nullptr) table.grad_scale = *launch.scalars.grad_scale;
  if (launch.scalars.clip != nullptr) table.clip = *launch.scalars.clip;
  const auto serial = [](int64_t, void (*task)(int64_t, void*), void* context) {
    task(0, context);
  };
  cpu::run(*launch.kernel, launch.dtype, table, serial);
}

void run(const Variant& variant, Dtype dtype, const Table& table, const cuda::Scalars& scalars,
         int device, void* stream) {
  launches.emplace_back(device, stream == &streams[device]);
  Launch launch{variant.cpu, dtype, device, stream, table, scalars, {}, {}, {}, {}, {}, {}};
  if (scalars.rules != nullptr) {
    const cuda::DeviceRules& rules = *scalars.rules;
    launch.made = rules;
    launch.sources.assign(rules.sources, rules.sources + rules.count);
    const auto groups = rules.count == 0 ? 0 : rules.sources[rules.count - 1].group + 1;
    launch.numbers.assign(rules.options, rules.options + groups * variant.cpu->options);
  }
  if (!capturing) return execute(launch);
  const auto bytes = variant.cpu->rule_bytes[cpu::Kernel::compute(dtype)];
  launch.tensors.assign(table.tensors, table.tensors + table.count);
  if (scalars.rules == nullptr && table.count != 0) {
    const auto* rules = static_cast<const char*>(table.rules);
    launch.rules.assign(rules, rules + (launch.tensors.back().rule + 1) * bytes);
    if (table.keys != nullptr) {
      launch.keys.assign(table.keys, table.keys + launch.tensors.back().rule + 1);
    }
  }
  for (const TensorEntry& tensor : launch.tensors) TORCH_CHECK(tensor.layout < 0);
  if (table.formats != nullptr) launch.formats.assign(table.formats, table.formats + kMaxOperands);
  launch.memory.resize(launch.made.count * bytes);
  if (launch.made.keys != nullptr) launch.keys.resize(launch.made.count);
  graph.push_back(std::move(launch));
}

void replay() {
  for (Launch& launch : graph) {
    launch.table.tensors = launch.tensors.data();
    launch.table.rules = launch.rules.data();
    launch.made.memory = launch.memory.data();
    if (!launch.formats.empty()) launch.table.formats = launch.formats.data();
    if (!launch.keys.empty()) {
      launch.table.keys = launch.keys.data();
      launch.made.keys = launch.made.keys != nullptr ? launch.keys.data() : nullptr;
    }
    execute(launch);
  }
}

// At once, also while a graph is captured.
void norm(const cuda::NormRequest& request, int, void*) {
  const auto args = std::make_unique<cuda::NormArguments>();
  const NormEntry& last = request.entries[request.count - 1];
  const int64_t blocks = last.blocks + norm_blocks(last.numel);
  for (int64_t next = 0; next < request.count;) {
    next = cuda::pack_norm(request, next, *args);
    for (int64_t i = 0; i < args->blocks * kNormLanes; ++i) cuda::norm_lanes(*args, i);
  }
  double* sums = request.memory + blocks * kNormLanes;
  for (int64_t i = 0; i < blocks; ++i) {
    cuda::norm_blocks_of(request.kind, request.memory, sums, blocks, i);
  }
  for (int i = 0; i < kNormColumns; ++i) {
    cuda::norm_columns(request.kind, sums, sums + blocks, blocks, i);
  }
  cuda::norm_total(request.kind, sums + blocks, request.total);
}

const Accelerator kStandIn = {
    kType,
    c10::DispatchKeySet({c10::DispatchKey::PrivateUse1, c10::DispatchKey::AutogradPrivateUse1,
                         c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::AutocastPrivateUse1}),
    [](const Variant&, Dtype, bool, int, void*) { return std::string(); },
    [](void*) { return capturing; },
    run,
    norm,
};

}  // namespace

PYBIND11_MODULE(_stand_in, module) {
  module.def("accelerator", [] { return py::capsule(&kStandIn, "fusedopt.Accelerator"); });
  module.def("allow", [](int number) { allocations = number; });
  module.def("waits", [] { return std::exchange(waits, 0); });
  module.def("launches", [] { return std::exchange(launches, {}); });
  module.def("capture", [](bool begin) {
    if (begin) graph.clear();
    capturing = begin;
  });
  module.def("replay", &replay);
}
