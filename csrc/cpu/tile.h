// A small matrix product whose result stays in registers: the inner loop of the attention kernels. Included, like
// vec.h's own parts, once per instruction set.

#include <type_traits>

namespace fym::FYM_ISA {

constexpr int64_t tile_vectors = Vec::width == 16 ? 4 : 2;  // 6 x 4 of 32 registers, 4 x 2 of 16
constexpr int64_t tile_rows = Vec::width == 16 ? 6 : 4;
constexpr int64_t tile_columns = tile_vectors * Vec::width;

// out (R x V vectors) = a b: a(row, k) = a[row * a_row + k * a_step], b(k, column) = b[k * b_step + column].
template <int64_t R, int64_t V>
inline void product(
    float* out, int64_t out_row, const float* a, int64_t a_row, int64_t a_step, const float* b,
    int64_t b_step, int64_t depth) {
  Vec sums[R][V] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec columns[V];
    for (int64_t v = 0; v < V; ++v) columns[v] = Vec::load(b + k * b_step + v * Vec::width);
    for (int64_t r = 0; r < R; ++r) {
      const Vec factor = Vec::all(a[r * a_row + k * a_step]);
      for (int64_t v = 0; v < V; ++v) sums[r][v] = fma(factor, columns[v], sums[r][v]);
    }
  }
  for (int64_t r = 0; r < R; ++r)
    for (int64_t v = 0; v < V; ++v) sums[r][v].store(out + r * out_row + v * Vec::width);
}

#ifdef FYM_HAS_BF16_CONVERSION
// The same for bf16, whose products are exact in float32: rows of b hold pairs (k, k+1) of each column.
template <int64_t R, int64_t V>
inline void product(
    float* out, int64_t out_row, const bf16* a, int64_t a_row, int64_t, const bf16* b, int64_t b_step,
    int64_t depth) {
  __m512 sums[R][V] = {};
  for (int64_t k = 0; k < depth; k += 2) {
    __m512bh columns[V];
    for (int64_t v = 0; v < V; ++v)
      columns[v] = (__m512bh)_mm512_loadu_si512(b + k * b_step + v * 2 * Vec::width);
    for (int64_t r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, a + r * a_row + k, sizeof pair);
      for (int64_t v = 0; v < V; ++v)
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], (__m512bh)_mm512_set1_epi32(pair), columns[v]);
    }
  }
  for (int64_t r = 0; r < R; ++r)
    for (int64_t v = 0; v < V; ++v) _mm512_storeu_ps(out + r * out_row + v * Vec::width, sums[r][v]);
}
#endif

// out (rows x columns) = a b for any sizes; columns in whole vectors, also those of b and out.
inline void multiply(
    float* out, int64_t out_row, const float* a, int64_t a_row, int64_t a_step, const float* b,
    int64_t b_step, int64_t rows, int64_t columns, int64_t depth) {
  int64_t c = 0;
  for (; c + tile_columns <= columns; c += tile_columns) {
    int64_t r = 0;
    for (; r + tile_rows <= rows; r += tile_rows)
      product<tile_rows, tile_vectors>(
          out + r * out_row + c, out_row, a + r * a_row, a_row, a_step, b + c, b_step, depth);
    for (; r < rows; ++r)
      product<1, tile_vectors>(
          out + r * out_row + c, out_row, a + r * a_row, a_row, a_step, b + c, b_step, depth);
  }
  for (; c < columns; c += Vec::width) {
    int64_t r = 0;
    for (; r + tile_rows <= rows; r += tile_rows)
      product<tile_rows, 1>(
          out + r * out_row + c, out_row, a + r * a_row, a_row, a_step, b + c, b_step, depth);
    for (; r < rows; ++r)
      product<1, 1>(out + r * out_row + c, out_row, a + r * a_row, a_row, a_step, b + c, b_step, depth);
  }
}

inline int64_t whole_vectors(int64_t n) { return (n + Vec::width - 1) / Vec::width * Vec::width; }

}  // namespace fym::FYM_ISA
