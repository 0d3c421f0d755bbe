// Compares a kernel with the CPU's sweep before its first use on a device, so that no user finds
// out by a wrong number what goes wrong there (a driver, an architecture that PTX was translated
// for).
#include <cuda_runtime_api.h>

#include <iterator>
#include <stdexcept>
#include <vector>

#include "cuda/self_test.h"
#include "engine/elements.h"

namespace fusedopt::cuda {

namespace {

constexpr int64_t kElements = 1027;  // vectors and a tail
constexpr int64_t kTensors = 2;
constexpr int64_t kSlot = 9216;     // bytes that one operand has
constexpr int64_t kNumbers = 1024;  // bytes that the numbers have
constexpr double kOption = 0.5;
constexpr float kScalars[] = {0.5, 0.25};
static_assert(std::size(kScalars) == kMaxScalars);

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  if (error == cudaErrorMemoryAllocation) throw OutOfMemory(cudaGetErrorString(error));
  throw std::runtime_error(cudaGetErrorString(error));
}

// Elsewhere in the process a graph may be under capture, which waiting would end.
class Relaxed {
 public:
  Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Gradients and parameters between -1 and 1. States such that no rule takes a negative number's
// root: NaNs have other bits on a GPU.
double value_between(int operand, double from_0_to_1) {
  if (operand < 2) return 2 * from_0_to_1 - 1;
  return operand == 2 ? 1 + from_0_to_1 : from_0_to_1 / 4;
}

// What each operand is stored as. With `mixed` all formats occur that the kernel takes.
struct Formats {
  Format all[kMaxOperands];
  bool mixed;

  Formats(Dtype dtype, bool several) : mixed(several) {
    constexpr Format kSeveral[] = {Format::kSplitFloat32, Format::kFloat16,  Format::kNoisyBFloat16,
                                   Format::kFloat32,      Format::kBFloat16, Format::kBFloat16};
    static_assert(std::size(kSeveral) == kMaxOperands);
    for (int k = 0; k < kMaxOperands; ++k) all[k] = mixed ? kSeveral[k] : format_of(dtype);
  }
  const Format* in_table() const { return mixed ? all : nullptr; }
};

std::vector<char> make_values(const Formats& formats, int operands) {
  std::vector<char> bytes(kTensors * operands * kSlot);
  uint32_t random = 1;
  for (int64_t slot = 0; slot < kTensors * operands; ++slot) {
    const auto operand = static_cast<int>(slot % operands);
    const Format format = formats.all[operand];
    const Dtype dtype =
        static_cast<int>(format) < kDtypes ? static_cast<Dtype>(format) : Dtype::kBFloat16;
    for (int64_t i = 0; i < kElements; ++i) {
      random = random * 1664525u + 1013904223u;  // Numerical Recipes' generator
      const double value = value_between(operand, (random >> 8) * 0x1p-24);
      store(bytes.data() + slot * kSlot + i * item_bytes(format), dtype, value);
    }
  }
  return bytes;
}

std::vector<TensorEntry> make_tensors(char* base, int operands) {
  std::vector<TensorEntry> tensors;
  for (int64_t t = 0; t < kTensors; ++t) {
    TensorEntry entry{};
    for (int k = 0; k < operands; ++k) entry.operands[k] = base + (t * operands + k) * kSlot;
    entry.start = t * kElements;
    entry.numel = kElements;
    entry.layout = -1;
    entry.maximize = t == 1;
    entry.position = static_cast<uint32_t>(t);
    entry.origin = t * ((int64_t{1} << 32) - 100);
    tensors.push_back(entry);
  }
  return tensors;
}

void serially(int64_t, void (*task)(int64_t, void*), void* context) { task(0, context); }

bool has_the_cpus_bits(const Kernel& kernel, const cpu::Kernel& expected, Dtype dtype, bool mixed,
                       char* values, int device, cudaStream_t stream) {
  const Formats formats(dtype, mixed);
  const int operands = kFirstState + kernel.states + 1;  // with a remainder
  const int compute = Kernel::compute(dtype);
  const std::vector<double> options(kernel.options, kOption);
  std::vector<char> rule(kernel.rule_bytes[compute]);
  Counts counts{3, {kScalars[0], kScalars[1]}, {}, {}};
  expected.advance(options.data(), counts);
  expected.prepare[compute](options.data(), counts, kLargest[1], rule.data());
  std::vector<char> host = make_values(formats, operands);

  // A count, an option, a scale, found_inf, what else the state holds; what clips; the rule.
  char* const numbers = values + host.size();
  const float given[] = {2, static_cast<float>(kOption), 4, 0, kScalars[0], kScalars[1]};
  check(cudaMemcpyAsync(values, host.data(), host.size(), cudaMemcpyHostToDevice, stream));
  const double clip = 0.75;
  check(cudaMemcpyAsync(numbers, given, sizeof given, cudaMemcpyHostToDevice, stream));
  check(cudaMemcpyAsync(numbers + 64, &clip, sizeof clip, cudaMemcpyHostToDevice, stream));
  check(cudaStreamSynchronize(stream));  // the host's own step writes over the source

  const auto on_host = make_tensors(host.data(), operands);
  const auto on_device = make_tensors(values, operands);
  std::vector<Number> sources(kernel.options, Number{kOption, nullptr, {}});
  sources[0] = {0, numbers + 4, Dtype::kFloat32};
  RuleSource source{0, {0, numbers, Dtype::kFloat32}, {}};
  for (int k = 0; k < kernel.scalars; ++k) {
    source.scalars[k] = {0, numbers + 16 + 4 * k, Dtype::kFloat32};
  }
  const uint64_t key = step_key(source.seed, 3);
  auto* const made_key = reinterpret_cast<uint64_t*>(numbers + 128);
  const DeviceRules made{sources.data(), &source, 1, numbers + 256, mixed ? made_key : nullptr};
  const Scalars scalars{reinterpret_cast<const float*>(numbers + 12),
                        reinterpret_cast<const float*>(numbers + 8), &made,
                        reinterpret_cast<const double*>(numbers + 64)};
  for (const bool from_device : {false, true}) {
    Table table{on_device.data(), kTensors, rule.data(), nullptr, from_device, 4};
    table.formats = formats.in_table();
    table.keys = mixed ? &key : nullptr;
    table.clip = from_device ? 2 : clip;  // which isn't read then
    Table twin = table;
    twin.clip = clip;
    twin.tensors = on_host.data();
    run(kernel, dtype, table, from_device ? scalars : Scalars{}, device, stream);
    cpu::run(expected, dtype, twin, serially);
  }
  std::vector<char> found(host.size());
  check(cudaMemcpyAsync(found.data(), values, found.size(), cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  return found == host;
}

}  // namespace

std::string self_test(const Kernel& kernel, const cpu::Kernel& expected, Dtype dtype, bool mixed,
                      void* memory, int device, void* stream) {
  try {
    const Relaxed relaxed;  // loading a kernel is nothing that a capture elsewhere allows, either
    const std::string reason = why_not(kernel, dtype, mixed);
    if (!reason.empty()) return reason;
    if (has_the_cpus_bits(kernel, expected, dtype, mixed, static_cast<char*>(memory), device,
                          static_cast<cudaStream_t>(stream))) {
      return "";
    }
    return std::string("the CUDA kernel ") + kernel.name + " has other bits than the CPU's here";
  } catch (const OutOfMemory&) {
    throw;
  } catch (const std::exception& error) {
    return error.what();
  }
}

int64_t self_test_bytes(const Kernel& kernel) {
  return kTensors * (kFirstState + kernel.states + 1) * kSlot + kNumbers;
}

}  // namespace fusedopt::cuda
