// Shares one work list among threads.
#include "cpu/kernel.h"
#include "engine/tuning.h"

namespace fusedopt::cpu {

namespace {

struct Job {
  void (*sweep)(const Table&, int64_t, int64_t);
  const Table* table;
};

}  // namespace

void run(const Kernel& kernel, Dtype dtype, const Table& table, ParallelFor parallel_for) {
  if (table.count == 0) return;
  const TensorEntry& last = table.tensors[table.count - 1];
  const int64_t elements = last.start + last.numel;
  Job job{kernel.sweep[active_isa()][static_cast<int>(dtype)], &table};
  if (elements < kParallelElements) {
    job.sweep(table, 0, elements);
    return;
  }
  parallel_for(
      elements, kParallelElements / 2,
      [](void* context, int64_t begin, int64_t end) {
        const auto& shared = *static_cast<const Job*>(context);
        shared.sweep(*shared.table, begin, end);
      },
      &job);
}

}  // namespace fusedopt::cpu
