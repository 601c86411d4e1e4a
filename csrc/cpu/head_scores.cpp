// head_scores: for every query row, sum p over two bands and sum p^2, p = softmax(q K^T / sqrt D), streamed over
// blocks of keys with a running maximum. Logits live in the first-level cache only. A band is a range of keys, for
// the temporal band one in each frame, so rows cost what lies inside their bands and no masks.

#ifdef FYM_ISA

#include "tile.h"

namespace fym::FYM_ISA {

constexpr int64_t key_block = 512;  // logits of tile_rows x key_block are alive at once
constexpr int64_t row_block = 96;   // rows that share a block of packed keys in the second-level cache

// Storage of the products' operands: bf16 where the processor multiplies it, else float.
template <class T>
struct Operand {
  using type = float;
};
#ifdef FYM_HAS_BF16_CONVERSION
template <>
struct Operand<bf16> {
  using type = bf16;
};
#endif

inline void convert(float* out, const float* x, int64_t n) { std::memcpy(out, x, n * sizeof(float)); }
inline void convert(bf16* out, const bf16* x, int64_t n) { std::memcpy(out, x, n * sizeof(bf16)); }
template <class T>
inline void convert(float* out, const T* x, int64_t n) {
  each_vec(n, [&](int64_t i, auto count) { store(load(x + i, count), out + i, count); });
}

template <class T>
constexpr int64_t pair_of() {
  return std::is_same_v<T, bf16> ? 2 : 1;
}

// Panel `panel` of the packed keys: (depth, tile_columns), for bf16 (depth/2, tile_columns, 2); zeros past the end.
template <class T>
void pack_keys(void* packed, const T* key, int64_t key_row, int64_t tokens, int64_t dim, int64_t panel) {
  using P = typename Operand<T>::type;
  constexpr int64_t pair = pair_of<P>();
  const int64_t depth = (dim + pair - 1) / pair * pair;
  P* out = static_cast<P*>(packed) + panel * depth * tile_columns;
  std::memset(out, 0, depth * tile_columns * sizeof(P));
  P row[1024];
  for (int64_t j = 0; j < std::min(tile_columns, tokens - panel * tile_columns); ++j)
    for (int64_t start = 0; start < dim; start += 1024) {
      const int64_t n = std::min<int64_t>(1024, dim - start);
      convert(row, key + (panel * tile_columns + j) * key_row + start, n);
      for (int64_t d = 0; d < n; ++d)
        out[(start + d) / pair * pair * tile_columns + j * pair + (start + d) % pair] = row[d];
    }
}

inline float sum_range(const float* p, int64_t low, int64_t high) {
  Vec total{};
  each_vec(high - low, [&](int64_t j, auto count) { total = total + load(p + low + j, count); });
  return sum(total);
}

struct ScoreRow {
  float top = -INFINITY, total = 0, spatial = 0, temporal = 0, square = 0;
};

// Takes the logits of keys first .. first+count of token `token` in; they are overwritten by p.
inline void take_in(
    ScoreRow& row, float* logits, int64_t first, int64_t count, int64_t token, int64_t frames,
    int64_t locations, int64_t reach, float scale) {
  const int64_t padded = whole_vectors(count);
  for (int64_t j = count; j < padded; ++j) logits[j] = -INFINITY;
  Vec highest = Vec::load(logits);
  for (int64_t j = Vec::width; j < padded; j += Vec::width) highest = max(highest, Vec::load(logits + j));
  const float top = std::max(row.top, largest(highest));
  const float faded = std::exp2((row.top - top) * scale);
  const Vec factor = Vec::all(scale), highest_seen = Vec::all(top);
  Vec total{}, square{};
  for (int64_t j = 0; j < padded; j += Vec::width) {
    const Vec p = exp2((Vec::load(logits + j) - highest_seen) * factor);
    total = total + p;
    square = fma(p, p, square);
    p.store(logits + j);
  }
  const auto within = [&](int64_t low, int64_t high) {
    return sum_range(logits, std::max<int64_t>(low - first, 0), std::min(high - first, count));
  };
  float temporal = 0;
  const int64_t place = token % locations * frames + token / locations;
  for (int64_t f = first / locations; f <= (first + count - 1) / locations; ++f) {
    // places p with |p frames + f - place| < reach
    const int64_t below = place - reach - f, above = place + reach - f;
    const int64_t low = below < 0 ? 0 : below / frames + 1;
    const int64_t high = above <= 0 ? 0 : std::min(locations, (above + frames - 1) / frames);
    if (low < high) temporal += within(f * locations + low, f * locations + high);
  }
  row.total = row.total * faded + sum(total);
  row.square = row.square * faded * faded + sum(square);
  row.spatial = row.spatial * faded + within(token - reach + 1, token + reach);
  row.temporal = row.temporal * faded + temporal;
  row.top = top;
}

// The three scores of `count` <= row_block query tokens into out (count, 3).
template <class T>
void score_rows(
    double* out, const T* query, int64_t query_row, const int64_t* rows, int64_t first_row, int64_t count,
    const void* packed, int64_t tokens, int64_t dim, int64_t frames, int64_t locations, int64_t reach,
    float scale, void* workspace) {
  using P = typename Operand<T>::type;
  constexpr int64_t pair = pair_of<P>();
  const int64_t depth = (dim + pair - 1) / pair * pair;
  P* q = static_cast<P*>(workspace);
  std::memset(q, 0, row_block * depth * sizeof(P));
  int64_t token[row_block];
  for (int64_t i = 0; i < count; ++i) {
    token[i] = rows ? rows[first_row + i] : first_row + i;
    convert(q + i * depth, query + token[i] * query_row, dim);
  }
  ScoreRow state[row_block];
  alignas(64) float logits[tile_rows * key_block];
  for (int64_t first = 0; first < tokens; first += key_block) {
    const int64_t keys = std::min(key_block, tokens - first);
    for (int64_t i = 0; i < count; i += tile_rows) {
      for (int64_t j = 0; j < keys; j += tile_columns)
        product<tile_rows, tile_vectors>(
            logits + j, key_block, q + i * depth, depth, int64_t{1},
            static_cast<const P*>(packed) + (first + j) * depth, tile_columns, depth);
      for (int64_t r = 0; r < std::min(tile_rows, count - i); ++r)
        take_in(
            state[i + r], logits + r * key_block, first, keys, token[i + r], frames, locations, reach, scale);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const double share = 1.0 / state[i].total;
    out[3 * i] = state[i].spatial * share;
    out[3 * i + 1] = state[i].temporal * share;
    out[3 * i + 2] = state[i].square * share * share;
  }
}

inline int64_t keys_per_panel() { return tile_columns; }

}  // namespace fym::FYM_ISA

#else

#define FYM_KERNEL_FILE "head_scores.cpp"
#include "vec.h"

#include <cmath>
#include <tuple>
#include <vector>

#include "binding.h"

namespace fym {

std::tuple<Tensor, Tensor, Tensor> head_scores(
    Tensor query, Tensor key, std::vector<int64_t> grid, double band, std::optional<Tensor> rows) {
  STD_TORCH_CHECK(query.dim() == 4, "query must be (B,S,H,D)");
  check_like("key", key, "query", query);
  const int64_t batch = query.size(0), tokens = query.size(1), heads = query.size(2), dim = query.size(3);
  const int64_t frames = grid[0], locations = grid[1] * grid[2];
  STD_TORCH_CHECK(tokens > 0 && frames * locations == tokens, "grid must hold the tokens of query");
  query = with_dense_rows(query), key = with_dense_rows(key);
  const int64_t* row_tokens = nullptr;
  int64_t count = tokens;
  if (rows) {
    STD_TORCH_CHECK(
        rows->dim() == 1 && rows->scalar_type() == ScalarType::Long && rows->size(0) > 0,
        "rows must be non-empty int64");
    rows = torch::stable::contiguous(*rows);
    row_tokens = data_of<int64_t>(*rows);
    count = rows->size(0);
    for (int64_t i = 0; i < count; ++i)
      STD_TORCH_CHECK(row_tokens[i] >= 0 && row_tokens[i] < tokens, "rows must lie in 0..tokens-1");
  }
  const int64_t reach = static_cast<int64_t>(std::min<double>(std::ceil(band * locations), tokens));
  const float scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(std::max<int64_t>(1, dim))));
  const auto new_scores = [&] {
    return torch::stable::new_empty(query, {batch, heads}, ScalarType::Float);
  };
  Tensor spatial = new_scores(), temporal = new_scores(), square = new_scores();

  const int64_t panel_keys = FYM_DISPATCH(keys_per_panel)(), block_rows = portable::row_block;
  const int64_t panels = (tokens + panel_keys - 1) / panel_keys, even = (dim + 1) / 2 * 2;
  const int64_t blocks = (count + block_rows - 1) / block_rows;
  std::vector<float> packed(panels * panel_keys * even);  // the keys of one head
  std::vector<double> scores(3 * count);
  with_storage_type("query", query, [&](auto storage) {
    using T = decltype(storage);
    const auto pack = FYM_DISPATCH(pack_keys<T>);
    const auto score = FYM_DISPATCH(score_rows<T>);
    for (int64_t head = 0; head < batch * heads; ++head) {
      const int64_t b = head / heads, h = head % heads;
      const T* q = data_of<T>(query) + b * query.stride(0) + h * query.stride(2);
      const T* k = data_of<T>(key) + b * key.stride(0) + h * key.stride(2);
      torch::stable::parallel_for(0, panels, 16, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel)
          pack(packed.data(), k, key.stride(1), tokens, dim, panel);
      });
      torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> workspace(block_rows * even);
        for (int64_t block = begin; block < end; ++block) {
          const int64_t first = block * block_rows;
          score(
              scores.data() + 3 * first, q, query.stride(1), row_tokens, first,
              std::min(block_rows, count - first), packed.data(), tokens, dim, frames, locations, reach, scale,
              workspace.data());
        }
      });
      double sums[3] = {};
      for (int64_t i = 0; i < 3 * count; ++i) sums[i % 3] += scores[i];
      data_of<float>(spatial)[head] = static_cast<float>(sums[0] / count);
      data_of<float>(temporal)[head] = static_cast<float>(sums[1] / count);
      data_of<float>(square)[head] = static_cast<float>(sums[2] / count);
    }
  });
  return {spatial, temporal, square};
}

}  // namespace fym

STABLE_TORCH_LIBRARY_IMPL(fym_kernels, CPU, library) {
  library.impl("head_scores", TORCH_BOX(&fym::head_scores));
}

#endif
