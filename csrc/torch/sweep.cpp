// The sweep of all tables: writes parameters, states and, with a scaler, gradients.
#include <optional>

#include "engine/tuning.h"
#include "torch/launch.h"
#include "torch/parallel.h"

namespace fusedopt {

void sweep(Reading& reading, const Tables& tables) {
  int64_t elements = 0;
  for (const Bucket& bucket : tables.buckets) {
    elements += bucket.device == kHost ? bucket.elements : 0;
  }
  // While the lock is released other threads may drop tensors: the storages are held, for a long
  // sweep only.
  std::optional<py::gil_scoped_release> release;
  if (elements >= kReleaseElements) {
    for (const int slot : reading.ready) {
      for (int k = 0; k < reading.group_of(slot).operands; ++k) {
        const c10::TensorImpl* tensor = reading.works()[slot].operands[k].tensor;
        if (tensor != nullptr) reading.owned.storages.push_back(tensor->storage());
      }
    }
    release.emplace();
  }
  const Scaler& scaler = reading.scaler;
  for (const Bucket& bucket : tables.buckets) {
    const Table table{bucket.tensors.data(),
                      static_cast<int64_t>(bucket.tensors.size()),
                      bucket.rules.data(),
                      bucket.layouts.data(),
                      scaler.scaled,
                      scaler.scale,
                      bucket.mixed ? bucket.formats : nullptr,
                      bucket.noisy ? bucket.keys.data() : nullptr,
                      scaler.clip};
    if (bucket.device == kHost) {
      cpu::run(*bucket.variant.cpu, bucket.dtype, table, parallel);
    } else {
      launch(reading, bucket, table);
    }
  }
}

}  // namespace fusedopt
