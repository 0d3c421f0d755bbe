// Shares one work list among threads.
#include "cpu/kernel.h"
#include "engine/tuning.h"

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

struct Job {
  void (*sweep)(const Table&, int64_t, int64_t);
  const Table* table;
  FloatMode mode;
};

}  // namespace

void run(const Kernel& kernel, Dtype dtype, const Table& table, ParallelFor parallel_for) {
  if (table.count == 0) return;
  const TensorEntry& last = table.tensors[table.count - 1];
  const int64_t elements = last.start + last.numel;
  Job job{kernel.sweep[active_isa()][static_cast<int>(dtype)], &table, float_mode()};
  if (elements < kParallelElements) {
    job.sweep(table, 0, elements);
    return;
  }
  parallel_for(
      elements, kParallelElements / 2,
      [](void* context, int64_t begin, int64_t end) {
        const auto& shared = *static_cast<const Job*>(context);
        const FloatMode mode = float_mode();
        set_float_mode(shared.mode);
        shared.sweep(*shared.table, begin, end);
        set_float_mode(mode);
      },
      &job);
}

}  // namespace fusedopt::cpu
