// Tensors whose operands lie differently in memory: the part of the CPU sweep that walks them in
// blocks of rows and columns, included once per instruction set. It names no optimizer, and rules
// are pointers here: as a template for each it was a fifth of the library.

// A part of a tensor: rows, columns and, where the last dimension is short, planes.
struct Box {
  int64_t at[kMaxOperands];  // the first element of each operand
  int64_t rows;
  int64_t columns;
  int64_t planes;
};

// How the operands step from row to row, from column to column, and from plane to plane.
struct Steps {
  int operands;
  bool has_planes = false;  // the last dimension is planes, and not columns
  int64_t row[kMaxOperands];
  int64_t column[kMaxOperands];
  int64_t plane[kMaxOperands];

  Steps(const Layout& layout, int of) : operands(of) {
    const int last = layout.ndim - 1;
    const auto stride = [&](int k, int d) {
      return d < 0 ? 0 : layout.strides[int64_t(k) * layout.ndim + d];
    };
    if (last >= 2 && layout.sizes[last] < kShortColumns) {
      for (int k = 0; k < operands; ++k) has_planes = has_planes || stride(k, last - 2) == 1;
    }
    for (int k = 0; k < operands; ++k) {
      plane[k] = has_planes ? stride(k, last) : 0;
      column[k] = stride(k, last - has_planes);
      row[k] = stride(k, last - has_planes - 1);
    }
  }

  // Is there an operand that lies side by side within a column, and in another cache line in each?
  bool is_transposed(const Stepper& stepper) const {
    bool any = false;
    for (int k = 0; k < operands; ++k) {
      any = any || (row[k] == 1 && column[k] * stepper.item(k) >= 64);
    }
    return any;
  }
};

// Adds to `at` how far element `index` of the dimensions from `first` on lies in each operand.
inline void add_place(const Layout& layout, int operands, int first, int64_t index, int64_t* at) {
  for (int d = layout.ndim - 1; d >= first; --d) {
    const int64_t along = index % layout.sizes[d];
    index /= layout.sizes[d];
    for (int k = 0; k < operands; ++k) {
      at[k] += along * layout.strides[int64_t(k) * layout.ndim + d];
    }
  }
}

// The largest box that begins with element `begin` and ends before `end`.
inline Box next_box(const Layout& layout, const Steps& steps, int64_t begin, int64_t end) {
  Box next{};
  add_place(layout, steps.operands, 0, begin, next.at);
  const auto size = [&](int d) { return d < 0 ? 1 : layout.sizes[d]; };
  const int last = layout.ndim - 1;
  const int64_t planes = steps.has_planes ? size(last) : 1;
  const int64_t width = size(last - steps.has_planes);
  const int64_t height = size(last - steps.has_planes - 1);
  const int64_t rest = end - begin;
  const int64_t plane = begin % planes;
  const int64_t column = begin / planes % width;
  next.rows = next.columns = 1;
  next.planes = std::min(planes - plane, rest);
  if (next.planes < planes) return next;
  next.columns = std::min(width - column, rest / planes);
  if (next.columns < width) return next;
  next.rows = std::min(height - begin / planes / width % height, rest / planes / width);
  return next;
}

#include "cpu/copy.inl"

// Rows of n elements side by side, each so many bytes after the one before.
inline void step_rows(const Table& table, const TensorEntry& part, const Stepper& stepper,
                      const void* rule, int64_t n, int64_t rows, const int64_t* row_bytes) {
  TensorEntry row = part;
  for (int64_t j = 0; j < rows; ++j) {
    stepper.dense(table, row, stepper, rule, 0, n);
    for (int k = 0; k < stepper.operands; ++k) {
      row.operands[k] = static_cast<char*>(row.operands[k]) + row_bytes[k];
    }
  }
}

constexpr int kTogether = 16;

template <typename Rule, Dtype kDtype>
void row_apart(const Rule& of, typename Storage<kDtype>::Type* p,
               const typename Storage<kDtype>::Type* g, int64_t n, int64_t param_step,
               int64_t grad_step, typename Storage<kDtype>::Compute factor) {
  using Access = Storage<kDtype>;
  using Compute = typename Access::Compute;
  const Rule rule = of;
  if (param_step == 1 && grad_step == 0) {
    const Compute grad = factor * *g;
    FUSEDOPT_VECTORIZE
    for (int64_t i = 0; i < n; ++i) step_element<Access>(rule, p, grad, nullptr, i);
    return;
  }
  for (; param_step == 1 && n >= kTogether; n -= kTogether) {
    alignas(64) Compute grad[kTogether];
    for (int j = 0; j < kTogether; ++j) grad[j] = factor * g[j * grad_step];
    FUSEDOPT_VECTORIZE
    for (int j = 0; j < kTogether; ++j) step_element<Access>(rule, p, grad[j], nullptr, j);
    p += kTogether;
    g += kTogether * grad_step;
  }
#pragma GCC unroll 4
  for (; n > 0; --n, p += param_step, g += grad_step) {
    step_element<Access>(rule, p, factor * *g, nullptr, 0);
  }
}

template <typename Rule, Dtype kDtype>
void step_apart(const Table& table, const TensorEntry& part, const void* rule, int64_t n,
                int64_t rows, const Steps& steps) {
  using Element = typename Storage<kDtype>::Type;
  auto* p = static_cast<Element*>(part.operands[kParam]);
  const auto* g = static_cast<const Element*>(part.operands[kGrad]);
  const Rule& of = *static_cast<const Rule*>(rule);
  const auto factor = grad_factor<typename Storage<kDtype>::Compute>(table, part);
  if (n >= kTogether || rows < n) {
    for (int64_t j = 0; j < rows; ++j, p += steps.row[kParam], g += steps.row[kGrad]) {
      row_apart<Rule, kDtype>(of, p, g, n, steps.column[kParam], steps.column[kGrad], factor);
    }
    return;
  }
  // Short rows: columns of as many of them as the cache holds.
  for (int64_t j = 0; j < rows; j += kRowTile) {
    const int64_t height = std::min<int64_t>(kRowTile, rows - j);
    for (int64_t i = 0; i < n; ++i) {
      row_apart<Rule, kDtype>(of, p + j * steps.row[kParam] + i * steps.column[kParam],
                              g + j * steps.row[kGrad] + i * steps.column[kGrad], height,
                              steps.row[kParam], steps.row[kGrad], factor);
    }
  }
}

// A block of rows and columns. Operands that lie otherwise than the block are copied to tiles and
// back; those that lie side by side within rows stay in place, and are stepped row by row.
struct Block {
  static constexpr int kTileBytes = kBlockTile * 8 + 1088;  // not all at one place in the L1 cache

  const Table& table;
  const TensorEntry& tensor;
  const Stepper& stepper;
  const void* rule;
  const Steps steps;
  const bool transposed;
  const char* filled_with = nullptr;  // the element that fills the gradient's tile
  int64_t filled = 0;
  alignas(64) char tiles[kMaxOperands][kTileBytes];

  Block(const Table& of, const TensorEntry& entry, const Stepper& how, const void* its_rule)
      : table(of),
        tensor(entry),
        stepper(how),
        rule(its_rule),
        steps(of.layouts[entry.layout], how.operands),
        transposed(steps.is_transposed(how)) {}

  void copy(int k, void* to, int64_t to_row, int64_t to_column, const void* from, int64_t from_row,
            int64_t from_column, int64_t rows, int64_t columns) const {
    const auto copy_items = stepper.item(k) == 2   ? copy_block<2>
                            : stepper.item(k) == 4 ? copy_block<4>
                                                   : copy_block<8>;
    copy_items(to, to_row, to_column, from, from_row, from_column, rows, columns);
  }

  void load(int k, const char* source, int64_t rows, int64_t columns) {
    const bool constant = k == kGrad && rows == 1 && steps.column[kGrad] == 0 && !table.scaled;
    if (constant && filled_with == source && filled >= columns) return;
    copy(k, tiles[k], columns, 1, source, steps.row[k], steps.column[k], rows, columns);
    if (k != kGrad) return;
    filled_with = constant ? source : nullptr;
    filled = columns;
  }

  // Operands that lie as the block does, or side by side within long rows, stay in place.
  bool stays(int k, int64_t rows, int64_t columns) const {
    const bool alike = rows == 1 || steps.row[k] == columns;
    return steps.column[k] == 1 && (alike || columns >= kShortRow);
  }

  void step(char* const* operands, int64_t rows, int64_t columns) {
    bool in_place[kMaxOperands];
    bool by_rows = false;
    for (int k = 0; k < steps.operands; ++k) {
      in_place[k] = stays(k, rows, columns);
      by_rows = by_rows || (in_place[k] && rows != 1 && steps.row[k] != columns);
      if (!in_place[k]) load(k, operands[k], rows, columns);
    }
    const int64_t length = by_rows ? columns : rows * columns;
    TensorEntry part = tensor;
    int64_t row_bytes[kMaxOperands];
    for (int k = 0; k < steps.operands; ++k) {
      part.operands[k] = in_place[k] ? operands[k] : tiles[k];
      row_bytes[k] = (in_place[k] ? steps.row[k] : length) * stepper.item(k);
    }
    step_rows(table, part, stepper, rule, length, by_rows ? rows : 1, row_bytes);
    for (int k = 0; k < steps.operands; ++k) {
      if (in_place[k] || (k == kGrad && !table.scaled)) continue;
      copy(k, operands[k], steps.row[k], steps.column[k], tiles[k], columns, 1, rows, columns);
    }
  }

  bool takes_apart() const { return stepper.apart != nullptr && !table.scaled && !transposed; }

  bool is_side_by_side(int64_t columns) const {
    bool all = columns >= kShortRow;
    for (int k = 0; k < steps.operands; ++k) all = all && steps.column[k] == 1;
    return all;
  }

  void step_part(char* const* operands, int64_t rows, int64_t columns, bool whole_rows) {
    whole_rows ? step_whole_rows(operands, rows, columns) : step(operands, rows, columns);
  }

  // Rows as a whole, however long they are.
  void step_whole_rows(char* const* operands, int64_t rows, int64_t columns) {
    TensorEntry part = tensor;
    std::copy_n(operands, steps.operands, part.operands);
    if (!is_side_by_side(columns)) return stepper.apart(table, part, rule, columns, rows, steps);
    int64_t row_bytes[kMaxOperands];
    for (int k = 0; k < steps.operands; ++k) row_bytes[k] = steps.row[k] * stepper.item(k);
    step_rows(table, part, stepper, rule, columns, rows, row_bytes);
  }
};

// How many columns of a box a block has. Both sides of a transposed one are long enough to
// read and write whole cache lines.
inline int64_t columns_of_block(int64_t rows, int64_t columns, bool transposed) {
  if (!transposed) return std::min<int64_t>(columns, kRowTile);
  return std::min(columns, kBlockTile / std::min<int64_t>(rows, kBlockRows));
}

#include "cpu/scattered.inl"

// Elements [begin, end) of a tensor, in the order of its layout.
__attribute__((noinline)) inline void strided(const Table& table, const TensorEntry& tensor,
                                              const Stepper& stepper, const void* rule,
                                              int64_t begin, int64_t end) {
  if (Scattered::suits(table.layouts[tensor.layout]) || is_split(table) || table.keys != nullptr) {
    return step_scattered(table, tensor, stepper, rule, begin, end);
  }
  Block block(table, tensor, stepper, rule);
  const Steps& steps = block.steps;
  const bool transposed = block.transposed;
  while (begin < end) {
    const Box part = next_box(table.layouts[tensor.layout], steps, begin, end);
    begin += part.rows * part.columns * part.planes;
    const bool whole_rows = block.takes_apart() || block.is_side_by_side(part.columns);
    const int64_t columns =
        whole_rows ? part.columns : columns_of_block(part.rows, part.columns, transposed);
    const int64_t tile = transposed ? kBlockTile : kRowTile;
    const int64_t rows = whole_rows ? part.rows : std::max<int64_t>(1, tile / columns);
    for (int64_t j = 0; j < part.rows; j += rows) {
      for (int64_t i = 0; i < part.columns; i += columns) {
        for (int64_t plane = 0; plane < part.planes; ++plane) {
          char* operands[kMaxOperands];
          for (int k = 0; k < stepper.operands; ++k) {
            const int64_t at =
                part.at[k] + j * steps.row[k] + i * steps.column[k] + plane * steps.plane[k];
            operands[k] = static_cast<char*>(tensor.operands[k]) + at * stepper.item(k);
          }
          block.step_part(operands, std::min(rows, part.rows - j),
                          std::min(columns, part.columns - i), whole_rows);
        }
      }
    }
  }
}
