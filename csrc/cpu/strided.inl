// Tensors whose operands lie differently in memory: the part of the CPU sweep that walks them in
// blocks of rows and columns, included once per instruction set. It names no optimizer.

// A part of a tensor: rows of the last but one dimension, columns of the last.
template <int kOperands>
struct Rectangle {
  int64_t at[kOperands];  // the first element of each operand
  int64_t rows;
  int64_t columns;
};

// How the operands step from row to row and from column to column.
template <int kOperands>
struct Steps {
  int64_t row[kOperands];
  int64_t column[kOperands];

  explicit Steps(const Layout& layout) {
    for (int k = 0; k < kOperands; ++k) {
      const int64_t* strides = layout.strides + int64_t(k) * layout.ndim;
      column[k] = strides[layout.ndim - 1];
      row[k] = layout.ndim > 1 ? strides[layout.ndim - 2] : 0;
    }
  }

  // Do all operands lie side by side within a row?
  bool in_rows() const {
    bool all = true;
    for (int k = 0; k < kOperands; ++k) all = all && column[k] == 1;
    return all;
  }

  // Is there an operand that lies side by side within a column, but not within a row?
  bool is_transposed() const {
    bool any = false;
    for (int k = 0; k < kOperands; ++k) {
      any = any || (row[k] == 1 && column[k] != 1 && column[k] != 0);
    }
    return any;
  }
};

// The largest rectangle that begins with element `begin` and ends before `end`.
template <int kOperands>
inline Rectangle<kOperands> next_rectangle(const Layout& layout, int64_t begin, int64_t end) {
  Rectangle<kOperands> next{};
  const int last = layout.ndim - 1;
  const int64_t width = layout.sizes[last];
  const int64_t height = last > 0 ? layout.sizes[last - 1] : 1;
  int64_t index[2] = {0, 0};  // column and row
  int64_t rest = begin;
  for (int d = last; d >= 0; --d) {
    const int64_t at = rest % layout.sizes[d];
    rest /= layout.sizes[d];
    if (last - d < 2) index[last - d] = at;
    for (int k = 0; k < kOperands; ++k) {
      next.at[k] += at * layout.strides[int64_t(k) * layout.ndim + d];
    }
  }
  const bool whole = index[0] == 0 && end - begin >= width;
  next.rows = whole ? std::min(height - index[1], (end - begin) / width) : 1;
  next.columns = whole ? width : std::min(width - index[0], end - begin);
  return next;
}

// A block of a rectangle's rows and columns, one row after the other in the tile.
template <Dtype kDtype>
__attribute__((noinline)) void load_block(typename Storage<kDtype>::Compute* tile,
                                          const typename Storage<kDtype>::Type* source,
                                          int64_t rows, int64_t columns, int64_t row,
                                          int64_t column) {
  using S = Storage<kDtype>;
  if (row == 1 && column != 1 && rows > 1) {  // each column lies side by side
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t j = 0; j < rows; ++j) tile[j * columns + i] = S::load(source[i * column + j]);
    }
    return;
  }
  for (int64_t j = 0; j < rows; ++j, source += row, tile += columns) {
    if (column == 1) {
      load_tile<kDtype>(tile, source, columns);
    } else if (column == 0) {
      std::fill_n(tile, columns, S::load(source[0]));
    } else if (column == 2) {  // g++ vectorises it
      for (int64_t i = 0; i < columns; ++i) tile[i] = S::load(source[i * 2]);
    } else {
      for (int64_t i = 0; i < columns; ++i) tile[i] = S::load(source[i * column]);
    }
  }
}

template <Dtype kDtype>
__attribute__((noinline)) void store_block(const typename Storage<kDtype>::Compute* tile,
                                           typename Storage<kDtype>::Type* target, int64_t rows,
                                           int64_t columns, int64_t row, int64_t column) {
  using S = Storage<kDtype>;
  if (row == 1 && column != 1 && rows > 1) {
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t j = 0; j < rows; ++j) target[i * column + j] = S::store(tile[j * columns + i]);
    }
    return;
  }
  for (int64_t j = 0; j < rows; ++j, target += row, tile += columns) {
    if (column == 1) {
      store_tile<kDtype>(tile, target, columns);
    } else {
      for (int64_t i = 0; i < columns; ++i) target[i * column] = S::store(tile[i]);
    }
  }
}

// A block of rows and columns. What lies otherwise than the block goes through a tile; what lies
// side by side within the rows stays in place in float32 and float64, and is stepped row by row.
template <typename Rule, Dtype kDtype>
struct Block {
  using Element = typename Storage<kDtype>::Type;
  using Compute = typename Storage<kDtype>::Compute;
  static constexpr int kOperands = 2 + Rule::kStates;

  const Table& table;
  const TensorEntry& tensor;
  const Rule& rule;
  const Steps<kOperands> steps;
  const Element* filled_with = nullptr;  // the element that fills the gradient's tile
  int64_t filled = 0;
  alignas(64) Compute tiles[kOperands][kBlockTile];

  Block(const Table& table, const TensorEntry& tensor, const Rule& rule)
      : table(table), tensor(tensor), rule(rule), steps(table.layouts[tensor.layout]) {}

  void load(int k, const Element* source, int64_t rows, int64_t columns) {
    const bool constant = k == 1 && rows == 1 && steps.column[1] == 0 && !table.scaled;
    if (constant && filled_with == source && filled >= columns) return;
    load_block<kDtype>(tiles[k], source, rows, columns, steps.row[k], steps.column[k]);
    filled_with = constant ? source : nullptr;
    filled = columns;
  }

  void store(int k, Element* target, int64_t rows, int64_t columns) {
    store_block<kDtype>(tiles[k], target, rows, columns, steps.row[k], steps.column[k]);
  }

  void step(Element* const* operands, int64_t rows, int64_t columns) {
    bool in_place[kOperands];
    bool by_rows = false;
    for (int k = 0; k < kOperands; ++k) {
      const bool alike = steps.column[k] == 1 && (rows == 1 || steps.row[k] == columns);
      const bool in_rows = steps.column[k] == 1 && columns >= kShortRow;
      in_place[k] = !kHalf<kDtype> && (alike || in_rows) && !(k == 1 && table.scaled);
      by_rows = by_rows || (in_place[k] && !alike);
      if (!in_place[k]) load(k, operands[k], rows, columns);
    }
    if (table.scaled) {
      const auto scale = Compute(table.grad_scale);
      for (int64_t i = 0; i < rows * columns; ++i) tiles[1][i] /= scale;
      store(1, operands[1], rows, columns);
    }
    const int64_t parts = by_rows ? rows : 1;
    for (int64_t j = 0; j < parts; ++j) {
      apply_part(operands, in_place, j, by_rows ? columns : rows * columns);
    }
    for (int k = 0; k < kOperands; ++k) {
      if (k != 1 && !in_place[k]) store(k, operands[k], rows, columns);
    }
  }

  void apply_part(Element* const* operands, const bool* in_place, int64_t j, int64_t n) {
    const Compute sign = tensor.maximize ? Compute(-1) : Compute(1);
    if constexpr (kHalf<kDtype>) {
      Compute* values[kOperands];
      for (int k = 0; k < kOperands; ++k) values[k] = tiles[k];
      apply<Rule, TileAccess<Compute>>(rule, values[0], values[1], values + 2, n, sign);
    } else {
      Element* values[kOperands];
      for (int k = 0; k < kOperands; ++k) {
        values[k] = in_place[k] ? operands[k] + j * steps.row[k] : tiles[k] + j * n;
      }
      apply<Rule, Storage<kDtype>>(rule, values[0], values[1], values + 2, n, sign);
    }
  }
};

// How many columns of a rectangle a block has. Both sides of a transposed one are long enough to
// read and write whole cache lines.
inline int64_t columns_of_block(int64_t rows, int64_t columns, bool transposed) {
  const int64_t wanted = transposed ? std::min<int64_t>(rows, kBlockRows) : 1;
  return std::min(columns, kBlockTile / wanted);
}

// Elements [begin, end) of a tensor, in the order of its layout.
template <typename Rule, Dtype kDtype>
__attribute__((noinline)) void strided(const Table& table, const TensorEntry& tensor,
                                       const Rule& rule, int64_t begin, int64_t end) {
  using Element = typename Storage<kDtype>::Type;
  constexpr int kOperands = 2 + Rule::kStates;
  Block<Rule, kDtype> block(table, tensor, rule);
  const auto& steps = block.steps;
  const bool in_rows = steps.in_rows();
  const bool transposed = steps.is_transposed();
  while (begin < end) {
    const auto part = next_rectangle<kOperands>(table.layouts[tensor.layout], begin, end);
    begin += part.rows * part.columns;
    Element* first[kOperands];
    for (int k = 0; k < kOperands; ++k) {
      first[k] = static_cast<Element*>(tensor.operands[k]) + part.at[k];
    }
    if (in_rows && part.columns >= kShortRow) {
      for (int64_t j = 0; j < part.rows; ++j) {
        TensorEntry row = tensor;
        for (int k = 0; k < kOperands; ++k) row.operands[k] = first[k] + j * steps.row[k];
        dense<Rule, kDtype>(table, row, rule, 0, part.columns);
      }
      continue;
    }
    const int64_t columns = columns_of_block(part.rows, part.columns, transposed);
    const int64_t rows = kBlockTile / columns;
    for (int64_t j = 0; j < part.rows; j += rows) {
      for (int64_t i = 0; i < part.columns; i += columns) {
        Element* operands[kOperands];
        for (int k = 0; k < kOperands; ++k) {
          operands[k] = first[k] + j * steps.row[k] + i * steps.column[k];
        }
        block.step(operands, std::min(rows, part.rows - j), std::min(columns, part.columns - i));
      }
    }
  }
}
