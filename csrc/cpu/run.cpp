// Shares one work list among threads.
#include "cpu/chunks.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fusedopt::cpu {

namespace {

// The calling thread's rounding and subnormals (torch.set_flush_denormal) hold in every thread, or
// the bits would depend on which thread an element falls to.
#if defined(__x86_64__)
using FloatMode = unsigned;
FloatMode float_mode() { return _mm_getcsr(); }
void set_float_mode(FloatMode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
using FloatMode = uint64_t;
FloatMode float_mode() {
  FloatMode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_float_mode(FloatMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#endif

}  // namespace

void run(const Kernel& kernel, Dtype dtype, const Table& table, Parallel parallel) {
  if (table.count == 0) return;
  const TensorEntry& last = table.tensors[table.count - 1];
  const auto sweep = kernel.sweep[active_isa()][static_cast<int>(dtype)];
  const FloatMode callers = float_mode();
  for_each_chunk(last.start + last.numel, parallel, [&](int64_t begin, int64_t end) {
    const FloatMode mode = float_mode();
    if (mode != callers) set_float_mode(callers);
    sweep(table, begin, end);
    if (mode != callers) set_float_mode(mode);
  });
}

}  // namespace fusedopt::cpu
