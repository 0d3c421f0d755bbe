// Tensors of many short dimensions, whose boxes of a few elements would take longer to find than to
// step. The offsets of the innermost dimensions' elements are worked out once. Tensors with noise,
// which depends on an element's number, or with numbers in two halves are stepped in this way, too.
struct Scattered {
  int64_t period = 1;  // elements after which the offsets repeat
  int64_t count = 1;   // of those, how many are stepped at once
  int64_t offsets[kMaxOperands][kRowTile];
  alignas(64) char tiles[kMaxOperands][kRowTile * 8 + 64];

  static bool suits(const Layout& layout) {
    const int64_t* end = layout.sizes + layout.ndim;
    return layout.ndim > 2 && end[-1] * end[-2] < kRowTile / 8;
  }

  Scattered(const Layout& layout, int operands) {
    int first = layout.ndim;
    while (first > 0 && period * layout.sizes[first - 1] <= kRowTile) {
      period *= layout.sizes[--first];
    }
    count = period;
    if (first == layout.ndim) {  // part of a long row
      period = layout.sizes[--first];
      count = kRowTile;
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
  const int operands = stepper.operands + is_split(table);
  Scattered scattered(layout, operands);
  const auto item = [&](int k) { return k < stepper.operands ? stepper.item(k) : kRemainderBytes; };
  const auto move = [&](int k, char* operand, const int64_t* offsets, int64_t n, bool to_tile) {
    const auto move_items = item(k) == 2   ? move_scattered<2>
                            : item(k) == 4 ? move_scattered<4>
                                           : move_scattered<8>;
    move_items(operand, offsets, n, scattered.tiles[k], to_tile);
  };
  while (begin < end) {
    const int64_t within = begin % scattered.period;
    const int64_t from = within % scattered.count;
    const int64_t rest = std::min(scattered.period - within, scattered.count - from);
    const int64_t n = std::min(rest, end - begin);
    int64_t at[kMaxOperands] = {};
    add_place(layout, operands, 0, begin - from, at);
    TensorEntry part = tensor;
    part.origin += begin;
    char* places[kMaxOperands];
    for (int k = 0; k < operands; ++k) {
      places[k] = static_cast<char*>(tensor.operands[k]) + at[k] * item(k);
      part.operands[k] = scattered.tiles[k];
      move(k, places[k], scattered.offsets[k] + from, n, true);
    }
    stepper.dense(table, part, stepper, rule, 0, n);
    for (int k = 0; k < operands; ++k) {
      if (k == kGrad && !table.scaled) continue;
      move(k, places[k], scattered.offsets[k] + from, n, false);
    }
    begin += n;
  }
}
