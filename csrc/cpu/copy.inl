// Copies of blocks of rows and columns to tiles and back, of elements as they are stored: a part of
// the CPU sweep, included once per instruction set.

// Elements as they are stored, of each size.
template <int kBytes>
struct Raw;
template <>
struct Raw<2> {
  typedef uint16_t Type __attribute__((aligned(1), may_alias));
};
template <>
struct Raw<4> {
  typedef uint32_t Type __attribute__((aligned(1), may_alias));
};
template <>
struct Raw<8> {
  typedef uint64_t Type __attribute__((aligned(1), may_alias));
};

typedef uint32_t Four __attribute__((vector_size(16)));
#if defined(__clang__)
#define FUSEDOPT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FUSEDOPT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Four{__VA_ARGS__})
#endif

// Makes columns of four rows of four; `to_row` and `from_row` are the distances of rows, in
// elements.
inline void transpose_four(Raw<4>::Type* to, int64_t to_row, const Raw<4>::Type* from,
                           int64_t from_row) {
  Four rows[4];
  for (int k = 0; k < 4; ++k) std::memcpy(&rows[k], from + k * from_row, sizeof rows[k]);
  const Four low01 = FUSEDOPT_SHUFFLE(rows[0], rows[1], 0, 4, 1, 5);
  const Four high01 = FUSEDOPT_SHUFFLE(rows[0], rows[1], 2, 6, 3, 7);
  const Four low23 = FUSEDOPT_SHUFFLE(rows[2], rows[3], 0, 4, 1, 5);
  const Four high23 = FUSEDOPT_SHUFFLE(rows[2], rows[3], 2, 6, 3, 7);
  const Four columns[4] = {
      FUSEDOPT_SHUFFLE(low01, low23, 0, 1, 4, 5), FUSEDOPT_SHUFFLE(low01, low23, 2, 3, 6, 7),
      FUSEDOPT_SHUFFLE(high01, high23, 0, 1, 4, 5), FUSEDOPT_SHUFFLE(high01, high23, 2, 3, 6, 7)};
  for (int k = 0; k < 4; ++k) std::memcpy(to + k * to_row, &columns[k], sizeof columns[k]);
}
#undef FUSEDOPT_SHUFFLE

// to[j, i] = from[i, j], where both lie side by side along their last index.
inline void transpose(Raw<4>::Type* to, int64_t to_row, const Raw<4>::Type* from, int64_t from_row,
                      int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i += 4) {
    const int64_t height = std::min<int64_t>(4, rows - i);
    for (int64_t j = 0; j < columns; j += 4) {
      const int64_t width = std::min<int64_t>(4, columns - j);
      if (height == 4 && width == 4) {
        transpose_four(to + j * to_row + i, to_row, from + i * from_row + j, from_row);
        continue;
      }
      for (int64_t k = i; k < i + height; ++k) {
        for (int64_t l = j; l < j + width; ++l) to[l * to_row + k] = from[k * from_row + l];
      }
    }
  }
}

// Copies rows of a few elements, whose number is known when this is compiled.
template <int kColumns, typename Element>
inline void copy_short(Element* to, int64_t to_row, int64_t to_column, const Element* from,
                       int64_t from_row, int64_t from_column, int64_t rows) {
  for (int64_t j = 0; j < rows; ++j, to += to_row, from += from_row) {
    for (int i = 0; i < kColumns; ++i) to[i * to_column] = from[i * from_column];
  }
}

// Copies a block of rows and columns from one place to another; a tile's rows come one after the
// other. The shorter steps are walked first on the side that isn't the tile.
template <int kBytes>
__attribute__((noinline)) void copy_block(void* to, int64_t to_row, int64_t to_column,
                                          const void* from, int64_t from_row, int64_t from_column,
                                          int64_t rows, int64_t columns) {
  using Element = typename Raw<kBytes>::Type;
  Element* target = static_cast<Element*>(to);
  const Element* source = static_cast<const Element*>(from);
  if (rows > 1 && to_row * from_row < to_column * from_column) {
    std::swap(rows, columns);
    std::swap(to_row, to_column);
    std::swap(from_row, from_column);
  }
  if constexpr (kBytes == 4) {
    if (from_column == 1 && to_row == 1 && from_row > 1 && to_column > 1) {
      return transpose(target, to_column, source, from_row, rows, columns);
    }
    if (to_column == 1 && from_row == 1 && from_column > 1 && to_row > 1) {
      return transpose(target, to_row, source, from_column, columns, rows);
    }
  }
  if (columns <= 4 && rows > 1) {
    const auto copy = columns == 1   ? copy_short<1, Element>
                      : columns == 2 ? copy_short<2, Element>
                      : columns == 3 ? copy_short<3, Element>
                                     : copy_short<4, Element>;
    return copy(target, to_row, to_column, source, from_row, from_column, rows);
  }
  for (int64_t j = 0; j < rows; ++j, target += to_row, source += from_row) {
    if (to_column == 1 && from_column == 1) {
      std::memcpy(target, source, columns * kBytes);
    } else if (to_column == 1 && from_column == 2) {  // g++ vectorises it
      FUSEDOPT_VECTORIZE
      for (int64_t i = 0; i < columns; ++i) target[i] = source[2 * i];
    } else if (to_column == 1 && from_column == 0) {
      for (int64_t i = 0; i < columns; ++i) target[i] = source[0];
    } else {  // element by element: vectors that are gathered and put back took a third longer
#pragma GCC unroll 4
      for (int64_t i = 0; i < columns; ++i) target[i * to_column] = source[i * from_column];
    }
  }
}

// Elements that lie anywhere, to a tile or back.
template <int kBytes>
__attribute__((noinline)) void move_scattered(void* place, const int64_t* offsets, int64_t n,
                                              void* tile, bool to_tile) {
  using Element = typename Raw<kBytes>::Type;
  Element* elements = static_cast<Element*>(place);
  Element* packed = static_cast<Element*>(tile);
  if (to_tile) {
    for (int64_t i = 0; i < n; ++i) packed[i] = elements[offsets[i]];
  } else {
    for (int64_t i = 0; i < n; ++i) elements[offsets[i]] = packed[i];
  }
}
