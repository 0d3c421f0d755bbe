// Tensors of many short dimensions: boxes of a few elements would take longer to find than to step.
// Where the elements of the innermost dimensions lie is worked out once.
struct Scattered {
  int64_t count = 1;  // elements of those dimensions together
  int64_t offsets[kMaxOperands][kRowTile];
  alignas(64) char tiles[kMaxOperands][kRowTile * 8 + 64];

  static bool suits(const Layout& layout) {
    const int64_t* end = layout.sizes + layout.ndim;
    return layout.ndim > 2 && end[-1] * end[-2] < kRowTile / 8;
  }

  Scattered(const Layout& layout, int operands) {
    int first = layout.ndim;
    while (first > 0 && count * layout.sizes[first - 1] <= kRowTile) {
      count *= layout.sizes[--first];
    }
    for (int64_t i = 0; i < count; ++i) {
      int64_t at[kMaxOperands] = {};
      add_place(layout, operands, first, i, at);
      for (int k = 0; k < operands; ++k) offsets[k][i] = at[k];
    }
  }
};

inline void step_scattered(const Table& table, const TensorEntry& tensor, const Stepper& stepper,
                           const void* rule, int64_t begin, int64_t end) {
  const Layout& layout = table.layouts[tensor.layout];
  Scattered scattered(layout, stepper.operands);
  const auto move = [&](int k, char* operand, const int64_t* offsets, int64_t n, bool to_tile) {
    const auto move_items = stepper.item(k) == 2   ? move_scattered<2>
                            : stepper.item(k) == 4 ? move_scattered<4>
                                                   : move_scattered<8>;
    move_items(operand, offsets, n, scattered.tiles[k], to_tile);
  };
  while (begin < end) {
    const int64_t from = begin % scattered.count;
    const int64_t n = std::min(scattered.count - from, end - begin);
    int64_t at[kMaxOperands] = {};
    add_place(layout, stepper.operands, 0, begin - from, at);
    TensorEntry part = tensor;
    char* operands[kMaxOperands];
    for (int k = 0; k < stepper.operands; ++k) {
      operands[k] = static_cast<char*>(tensor.operands[k]) + at[k] * stepper.item(k);
      part.operands[k] = scattered.tiles[k];
      move(k, operands[k], scattered.offsets[k] + from, n, true);
    }
    stepper.dense(table, part, stepper, rule, 0, n);
    for (int k = 0; k < stepper.operands; ++k) {
      if (k == kGrad && !table.scaled) continue;
      move(k, operands[k], scattered.offsets[k] + from, n, false);
    }
    begin += n;
  }
}
