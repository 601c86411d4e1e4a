// The temporal heads of head_attention: the queries of one location, over all frames, against the keys of the
// locations around it and, with a sink, of the first frame. A few dozen rows and keys: too little for a library's
// GEMM, so rows are gathered as float32 and multiplied in place.

#ifdef FYM_ISA

#include "tile.h"

namespace fym::FYM_ISA {

constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

// Float rows of `width` (whole vectors, zeros past dim) from the tokens' rows of x; and the same transposed.
template <class T>
void gather(
    float* rows, float* transposed, const T* x, int64_t x_row, const int64_t* tokens, int64_t count, int64_t dim,
    int64_t width, int64_t transposed_row) {
  for (int64_t i = 0; i < count; ++i)
    each_vec(dim, [&](int64_t d, auto n) { load(x + tokens[i] * x_row + d, n).store(rows + i * width + d); });
  if (!transposed) return;
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t i = 0; i < count; ++i) transposed[d * transposed_row + i] = rows[i * width + d];
    for (int64_t i = count; i < transposed_row; ++i) transposed[d * transposed_row + i] = 0;
  }
}

struct Workspace {
  float *q, *k, *v, *transposed, *map, *grad_map, *grad, *out, *wide;
};

// Cuts `space` (null: only counts) into what `rows` queries and `keys` keys need; the floats taken.
inline int64_t cut(float* space, int64_t rows, int64_t keys, int64_t dim, Workspace& w) {
  const int64_t width = whole_vectors(dim), padded = whole_vectors(keys), most = std::max(rows, keys);
  int64_t at = 0;
  const auto take = [&](float*& part, int64_t n) {
    part = space + at;
    at += whole_vectors(n);
  };
  take(w.q, rows * width), take(w.k, keys * width), take(w.v, keys * width), take(w.transposed, dim * padded);
  take(w.map, rows * padded), take(w.grad_map, rows * padded), take(w.grad, rows * width);
  take(w.out, rows * width), take(w.wide, most * width);
  return at;
}

inline int64_t temporal_workspace(int64_t rows, int64_t keys, int64_t dim) {
  Workspace w;
  return cut(nullptr, rows, keys, dim, w);
}

// Attention of one location and head: `queries` tokens see `keys` tokens.
template <class T>
void temporal_forward(
    T* out, int64_t out_row, float* logsumexp, int64_t logsumexp_step, const T* q, int64_t q_row, const T* k,
    int64_t k_row, const T* v, int64_t v_row, const int64_t* queries, int64_t rows, const int64_t* keys,
    int64_t count, int64_t dim, float scale, float* space) {
  const int64_t width = whole_vectors(dim), padded = whole_vectors(count);
  Workspace w;
  cut(space, rows, count, dim, w);
  gather<T>(w.q, nullptr, q, q_row, queries, rows, dim, width, 0);
  gather<T>(w.k, w.transposed, k, k_row, keys, count, dim, width, padded);
  gather<T>(w.v, nullptr, v, v_row, keys, count, dim, width, 0);
  multiply(w.map, padded, w.q, width, 1, w.transposed, padded, rows, padded, dim);
  const Vec factor = Vec::all(scale * log2_e);
  for (int64_t i = 0; i < rows; ++i) {
    float* p = w.map + i * padded;
    for (int64_t j = count; j < padded; ++j) p[j] = scale < 0 ? INFINITY : -INFINITY;
    Vec highest = Vec::all(-INFINITY), total{};
    for (int64_t j = 0; j < padded; j += Vec::width) {
      const Vec scaled = Vec::load(p + j) * factor;
      highest = max(highest, scaled);
      scaled.store(p + j);
    }
    const float top = largest(highest);
    for (int64_t j = 0; j < padded; j += Vec::width) {
      const Vec e = exp2(Vec::load(p + j) - Vec::all(top));
      total = total + e;
      e.store(p + j);
    }
    const float sums = sum(total);
    const Vec share = Vec::all(1 / sums);
    for (int64_t j = 0; j < padded; j += Vec::width) (Vec::load(p + j) * share).store(p + j);
    logsumexp[queries[i] * logsumexp_step] = (top + std::log2(sums)) * ln_2;
  }
  multiply(w.out, width, w.map, padded, 1, w.v, width, rows, width, count);
  for (int64_t i = 0; i < rows; ++i)
    each_vec(dim, [&](int64_t d, auto n) {
      store(Vec::load(w.out + i * width + d), out + queries[i] * out_row + d, n);
    });
}

template <class S>
inline void put(S* to, int64_t to_row, const int64_t* tokens, const float* rows, int64_t count, int64_t dim,
    int64_t width, bool add) {
  for (int64_t i = 0; i < count; ++i)
    each_vec(dim, [&](int64_t d, auto n) {
      S* at = to + tokens[i] * to_row + d;
      const Vec value = Vec::load(rows + i * width + d);
      store(add ? value + load(at, n) : value, at, n);
    });
}

// Gradients of one location and head. Keys of several locations (S = float, added up) or of one (S = T).
template <class T, class S>
void temporal_backward(
    T* grad_q, int64_t grad_q_row, S* grad_k, int64_t grad_k_row, S* grad_v, int64_t grad_v_row, bool add,
    const T* grad, int64_t grad_row, const T* q, int64_t q_row, const T* k, int64_t k_row, const T* v,
    int64_t v_row, const T* out, int64_t out_row, const float* logsumexp, int64_t logsumexp_step,
    const int64_t* queries, int64_t rows, const int64_t* keys, int64_t count, int64_t dim, float scale,
    float* space) {
  const int64_t width = whole_vectors(dim), padded = whole_vectors(count);
  Workspace w;
  cut(space, rows, count, dim, w);
  gather<T>(w.q, nullptr, q, q_row, queries, rows, dim, width, 0);
  gather<T>(w.grad, nullptr, grad, grad_row, queries, rows, dim, width, 0);
  gather<T>(w.out, nullptr, out, out_row, queries, rows, dim, width, 0);
  gather<T>(w.v, w.transposed, v, v_row, keys, count, dim, width, padded);
  multiply(w.grad_map, padded, w.grad, width, 1, w.transposed, padded, rows, padded, dim);
  gather<T>(w.k, w.transposed, k, k_row, keys, count, dim, width, padded);
  multiply(w.map, padded, w.q, width, 1, w.transposed, padded, rows, padded, dim);
  for (int64_t i = 0; i < rows; ++i) {
    Vec product{};
    for (int64_t d = 0; d < width; d += Vec::width)
      product = fma(Vec::load(w.grad + i * width + d), Vec::load(w.out + i * width + d), product);
    const Vec mean = Vec::all(sum(product)), weight = Vec::all(scale);
    const float shift = logsumexp[queries[i] * logsumexp_step];
    for (int64_t j = 0; j < padded; j += Vec::width) {
      float *p = w.map + i * padded + j, *g = w.grad_map + i * padded + j;
      const Vec share = exp2(fma(Vec::load(p), weight, Vec::all(-shift)) * Vec::all(log2_e));
      share.store(p);
      (share * (Vec::load(g) - mean) * weight).store(g);
    }
  }
  multiply(w.wide, width, w.grad_map, padded, 1, w.k, width, rows, width, count);
  put(grad_q, grad_q_row, queries, w.wide, rows, dim, width, false);
  multiply(w.wide, width, w.grad_map, 1, padded, w.q, width, count, width, rows);
  put(grad_k, grad_k_row, keys, w.wide, count, dim, width, add);
  multiply(w.wide, width, w.map, 1, padded, w.grad, width, count, width, rows);
  put(grad_v, grad_v_row, keys, w.wide, count, dim, width, add);
}

template <class T>
void round_rows(T* to, int64_t to_row, const float* from, int64_t rows, int64_t dim) {
  for (int64_t i = 0; i < rows; ++i)
    each_vec(dim, [&](int64_t d, auto n) { store(load(from + i * dim + d, n), to + i * to_row + d, n); });
}

}  // namespace fym::FYM_ISA

#else

#define FYM_KERNEL_FILE "temporal_attention.cpp"
#include "vec.h"

#include <vector>

#include "binding.h"

namespace fym {

// Which tokens the queries of a location see.
class Neighbourhood {
 public:
  Neighbourhood(const std::vector<int64_t>& grid, int64_t window, bool sink)
      : frames_(grid[0]), height_(grid[1]), width_(grid[2]), window_(window), sink_(sink) {}

  int64_t frames() const { return frames_; }
  int64_t locations() const { return height_ * width_; }
  bool overlapping() const { return window_ > 0 || sink_; }

  void queries(int64_t location, std::vector<int64_t>& tokens) const {
    tokens.clear();
    for (int64_t f = 0; f < frames_; ++f) tokens.push_back(f * locations() + location);
  }

  void keys(int64_t location, std::vector<int64_t>& tokens) const {
    tokens.clear();
    for (int64_t p = 0; sink_ && p < locations(); ++p) tokens.push_back(p);
    const int64_t row = location / width_, column = location % width_;
    for (int64_t f = sink_ ? 1 : 0; f < frames_; ++f)
      for (int64_t y = std::max<int64_t>(0, row - window_); y <= std::min(height_ - 1, row + window_); ++y)
        for (int64_t x = std::max<int64_t>(0, column - window_); x <= std::min(width_ - 1, column + window_); ++x)
          tokens.push_back((f * height_ + y) * width_ + x);
  }

  int64_t most_keys() const {
    const int64_t tall = std::min(height_, 2 * std::min(window_, height_) + 1);
    const int64_t broad = std::min(width_, 2 * std::min(window_, width_) + 1);
    return tall * broad * frames_ + (sink_ ? locations() : 0);
  }

 private:
  int64_t frames_, height_, width_, window_;
  bool sink_;
};

// One head of a (B,S,H,D) tensor.
template <class T>
T* head_of(const Tensor& x, int64_t b, int64_t h) {
  return data_of<T>(x) + b * x.stride(0) + h * x.stride(2);
}

// Fills the given heads of out (B,S,H,D) and logsumexp (B,H,S).
void temporal_attention(
    Tensor out, Tensor logsumexp, Tensor query, Tensor key, Tensor value, std::vector<int64_t> heads,
    std::vector<int64_t> grid, int64_t window, bool sink, double scale) {
  const Neighbourhood near(grid, window, sink);
  const int64_t batch = query.size(0), dim = query.size(3), locations = near.locations(), frames = near.frames();
  query = with_dense_rows(query), key = with_dense_rows(key), value = with_dense_rows(value);
  with_storage_type("query", query, [&](auto storage) {
    using T = decltype(storage);
    const auto attend = FYM_DISPATCH(temporal_forward<T>);
    const int64_t space_size = FYM_DISPATCH(temporal_workspace)(frames, near.most_keys(), dim);
    torch::stable::parallel_for(0, batch * locations, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> space(space_size);
      std::vector<int64_t> queries, keys;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / locations;
        near.queries(i % locations, queries);
        near.keys(i % locations, keys);
        for (const int64_t h : heads)
          attend(
              head_of<T>(out, b, h), out.stride(1),
              data_of<float>(logsumexp) + b * logsumexp.stride(0) + h * logsumexp.stride(1),
              logsumexp.stride(2), head_of<T>(query, b, h), query.stride(1), head_of<T>(key, b, h),
              key.stride(1), head_of<T>(value, b, h), value.stride(1), queries.data(), frames, keys.data(),
              keys.size(), dim, static_cast<float>(scale), space.data());
      }
    });
  });
}

// Fills the given heads of the gradients (B,S,H,D). A key that several locations see gets its gradient summed in
// float32, by one thread.
void temporal_attention_backward(
    Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad, Tensor query, Tensor key, Tensor value,
    Tensor out, Tensor logsumexp, std::vector<int64_t> heads, std::vector<int64_t> grid, int64_t window,
    bool sink, double scale) {
  const Neighbourhood near(grid, window, sink);
  const int64_t batch = query.size(0), tokens = query.size(1), dim = query.size(3);
  const int64_t locations = near.locations(), frames = near.frames();
  query = with_dense_rows(query), key = with_dense_rows(key), value = with_dense_rows(value);
  grad = with_dense_rows(grad), out = with_dense_rows(out);
  with_storage_type("query", query, [&](auto storage) {
    using T = decltype(storage);
    const int64_t space_size = FYM_DISPATCH(temporal_workspace)(frames, near.most_keys(), dim);
    const auto at = [&](auto run, int64_t b, int64_t h, int64_t location, auto* grad_k, int64_t grad_k_row,
                        auto* grad_v, int64_t grad_v_row, std::vector<int64_t>& queries,
                        std::vector<int64_t>& keys, float* space) {
      near.queries(location, queries);
      near.keys(location, keys);
      run(head_of<T>(grad_query, b, h), grad_query.stride(1), grad_k, grad_k_row, grad_v, grad_v_row,
          near.overlapping(), head_of<T>(grad, b, h), grad.stride(1), head_of<T>(query, b, h), query.stride(1),
          head_of<T>(key, b, h), key.stride(1), head_of<T>(value, b, h), value.stride(1),
          head_of<T>(out, b, h), out.stride(1),
          data_of<float>(logsumexp) + b * logsumexp.stride(0) + h * logsumexp.stride(1), logsumexp.stride(2),
          queries.data(), frames, keys.data(), static_cast<int64_t>(keys.size()), dim,
          static_cast<float>(scale), space);
    };
    if (!near.overlapping()) {
      const auto run = FYM_DISPATCH(temporal_backward<T, T>);
      torch::stable::parallel_for(0, batch * locations, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> space(space_size);
        std::vector<int64_t> queries, keys;
        for (int64_t i = begin; i < end; ++i)
          for (const int64_t h : heads) {
            const int64_t b = i / locations;
            at(run, b, h, i % locations, head_of<T>(grad_key, b, h), grad_key.stride(1),
               head_of<T>(grad_value, b, h), grad_value.stride(1), queries, keys, space.data());
          }
      });
      return;
    }
    const auto run = FYM_DISPATCH(temporal_backward<T, float>);
    const auto round = FYM_DISPATCH(round_rows<T>);
    const int64_t count = heads.size();
    torch::stable::parallel_for(0, batch * count, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> space(space_size), grad_k(tokens * dim), grad_v(tokens * dim);
      std::vector<int64_t> queries, keys;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / count, h = heads[i % count];
        std::fill(grad_k.begin(), grad_k.end(), 0.0f);
        std::fill(grad_v.begin(), grad_v.end(), 0.0f);
        for (int64_t location = 0; location < locations; ++location)
          at(run, b, h, location, grad_k.data(), dim, grad_v.data(), dim, queries, keys, space.data());
        round(head_of<T>(grad_key, b, h), grad_key.stride(1), grad_k.data(), tokens, dim);
        round(head_of<T>(grad_value, b, h), grad_value.stride(1), grad_v.data(), tokens, dim);
      }
    });
  });
}

}  // namespace fym

STABLE_TORCH_LIBRARY_IMPL(fym_kernels, CPU, library) {
  library.impl("temporal_attention_", TORCH_BOX(&fym::temporal_attention));
  library.impl("temporal_attention_backward_", TORCH_BOX(&fym::temporal_attention_backward));
}

#endif
