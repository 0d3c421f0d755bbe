// Shares one work list among threads.
#include "cpu/chunks.h"

namespace fusedopt::cpu {

void run(const Kernel& kernel, Dtype dtype, const Table& table, Parallel parallel) {
  if (table.count == 0) return;
  const TensorEntry& last = table.tensors[table.count - 1];
  const auto sweep = kernel.sweep[active_isa()][static_cast<int>(dtype)];
  for_each_chunk(last.start + last.numel, parallel,
                 [&](int64_t begin, int64_t end) { sweep(table, begin, end); });
}

}  // namespace fusedopt::cpu
