// qk_norm_rope: RMSNorm of query and key, then rotary embedding; backward in one pass over grad and input.
//
// A row is one token of one tensor: heads x dim. It is read twice, the second time from the L1 cache. Channels
// come as pairs (first, second) that turn together; weights, cosines and sines are kept in that order: of each
// head the dim/2 first channels, then the dim/2 second ones. cos and sin (dim/2 each) are the token's own.

#ifdef FYM_ISA

namespace fym::FYM_ISA {

template <bool interleaved, class T, class N>
inline Pairs load_channels(const T* head, int64_t pair, int64_t pairs, N count) {
  if constexpr (interleaved) return load_pairs(head + 2 * pair, count);
  return {load(head + pair, count), load(head + pairs + pair, count)};
}

template <bool interleaved, class T, class N>
inline void store_channels(Pairs v, T* head, int64_t pair, int64_t pairs, N count) {
  if constexpr (interleaved) {
    store_pairs(v, head + 2 * pair, count);
  } else {
    store(v.first, head + pair, count);
    store(v.second, head + pairs + pair, count);
  }
}

// Heads first..last - 1 share one root mean square; rstd null: no norm. known: how many pairs, if not 0. Then
// the loop over them unrolls, and the scaled cosines and sines stay in registers from head to head.
template <class T, bool interleaved, int64_t known>
void rope_forward_heads(
    T* out, float* rstd, const T* x, int64_t stride, const float* weight, const float* cos, const float* sin,
    int64_t first, int64_t last, int64_t given, float eps) {
  const int64_t pairs = known ? known : given;
  Vec scale = Vec::all(1);
  if (rstd) {
    Vec square_a{}, square_b{};
    for (int64_t h = first; h < last; ++h)
      each_vec(pairs, [&](int64_t i, auto n) {
        const Pairs v = load_channels<interleaved>(x + h * stride, i, pairs, n);
        square_a = fma(v.first, v.first, square_a);
        square_b = fma(v.second, v.second, square_b);
      });
    *rstd = 1 / std::sqrt(sum(square_a + square_b) / static_cast<float>((last - first) * 2 * pairs) + eps);
    scale = Vec::all(*rstd);
  }
  // channels in order, so that the row is written from its beginning to its end
  const auto turn = [&](int64_t h, int64_t i, Vec c, Vec s, auto n) {
    const Pairs v = load_channels<interleaved>(x + h * stride, i, pairs, n);
    const Pairs w = load_channels<false>(weight + h * 2 * pairs, i, pairs, n);
    const Vec a = v.first * w.first, b = v.second * w.second;
    store_channels<interleaved>({fnma(b, s, a * c), fma(a, s, b * c)}, out + h * 2 * pairs, i, pairs, n);
  };
  if constexpr (known) {
    constexpr int64_t vectors = known / Vec::width;
    static_assert(vectors * Vec::width == known);
    Vec c[vectors], s[vectors];
    for (int64_t i = 0; i < vectors; ++i) {
      c[i] = Vec::load(cos + i * Vec::width) * scale;
      s[i] = Vec::load(sin + i * Vec::width) * scale;
    }
    for (int64_t h = first; h < last; ++h)
      for (int64_t i = 0; i < vectors; ++i) turn(h, i * Vec::width, c[i], s[i], Full{});
  } else {
    for (int64_t h = first; h < last; ++h)
      each_vec(pairs, [&](int64_t i, auto n) {
        turn(h, i, load(cos + i, n) * scale, load(sin + i, n) * scale, n);
      });
  }
}

// With n = x rstd and g = w (R^T grad): grad_x = rstd (g - n mean(g n)), grad_weight += n (R^T grad).
// scratch holds rstd g of a row. weight_sum null: not wanted.
template <class T, bool interleaved>
void rope_backward_heads(
    T* grad_x, float* weight_sum, float* scratch, const float* rstd, const T* grad, int64_t grad_stride,
    const T* x, int64_t stride, const float* weight, const float* cos, const float* sin, int64_t first,
    int64_t last, int64_t pairs) {
  const Vec scale = Vec::all(rstd ? *rstd : 1);
  const auto turn_back = [&](int64_t h, int64_t i, auto n) -> Pairs {
    const Pairs d = load_channels<interleaved>(grad + h * grad_stride, i, pairs, n);
    const Vec c = load(cos + i, n) * scale, s = load(sin + i, n) * scale;
    return {fma(d.second, s, d.first * c), fnma(d.first, s, d.second * c)};
  };
  if (!rstd) {
    for (int64_t h = first; h < last; ++h)
      each_vec(pairs, [&](int64_t i, auto n) {
        store_channels<interleaved>(turn_back(h, i, n), grad_x + h * 2 * pairs, i, pairs, n);
      });
    return;
  }
  Vec along_a{}, along_b{};
  for (int64_t h = first; h < last; ++h)
    each_vec(pairs, [&](int64_t i, auto n) {
      const int64_t at = h * 2 * pairs;
      const Pairs d = turn_back(h, i, n);
      const Pairs v = load_channels<interleaved>(x + h * stride, i, pairs, n);
      const Pairs w = load_channels<false>(weight + at, i, pairs, n);
      const Pairs g{d.first * w.first, d.second * w.second};
      // else the stores to scratch of the next row wait behind those to grad_x, which miss the cache
      __builtin_prefetch(grad_x + at + 2 * i, 1);
      along_a = fma(g.first, v.first, along_a);
      along_b = fma(g.second, v.second, along_b);
      store_channels<false>(g, scratch + at, i, pairs, n);
      if (weight_sum) {
        const Pairs sums = load_channels<false>(weight_sum + at, i, pairs, n);
        const Pairs more{fma(d.first, v.first, sums.first), fma(d.second, v.second, sums.second)};
        store_channels<false>(more, weight_sum + at, i, pairs, n);
      }
    });
  const float mean = sum(along_a + along_b) / static_cast<float>((last - first) * 2 * pairs);
  const Vec back = Vec::all(mean * *rstd * *rstd);
  for (int64_t h = first; h < last; ++h)
    each_vec(pairs, [&](int64_t i, auto n) {
      const Pairs v = load_channels<interleaved>(x + h * stride, i, pairs, n);
      const Pairs g = load_channels<false>(scratch + h * 2 * pairs, i, pairs, n);
      const Pairs out{fnma(v.first, back, g.first), fnma(v.second, back, g.second)};
      store_channels<interleaved>(out, grad_x + h * 2 * pairs, i, pairs, n);
    });
}

}  // namespace fym::FYM_ISA

#else

#include <cmath>

#define FYM_KERNEL_FILE "qk_norm_rope.cpp"
#include "vec.h"

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "binding.h"
#include "rotary.h"

namespace fym {
namespace {

// Tokens whose weight gradients are summed together: fixed, so that the result does not depend on the threads.
constexpr int64_t tokens_per_part = 32;
constexpr int64_t usual_pairs = 64;  // of a head of Wan and HunyuanVideo

void check(
    const Tensor& query, const Tensor& key, const Tensor& table, const std::vector<int64_t>& grid,
    const std::vector<int64_t>& axes_dim, bool time_per_sample, const std::string& norm, int64_t rotate_from) {
  STD_TORCH_CHECK(query.dim() == 4, "query must be (B,S,H,D)");
  check_like("key", key, "query", query);
  STD_TORCH_CHECK(norm == "across_heads" || norm == "per_head" || norm == "none", "norm must be known");
  STD_TORCH_CHECK(grid.size() == 3 && axes_dim.size() == 3, "grid and axes_dim must be three numbers");
  int64_t dim = 0, entries = 0;
  for (int axis = 0; axis < 3; ++axis) {
    STD_TORCH_CHECK(grid[axis] >= 0 && axes_dim[axis] >= 0 && axes_dim[axis] % 2 == 0, "grid must be >= 0");
    dim += axes_dim[axis];
    entries += grid[axis] * (axes_dim[axis] / 2) * (axis == 0 && time_per_sample ? query.size(0) : 1);
  }
  STD_TORCH_CHECK(dim == query.size(3), "axes_dim must be even numbers with sum D");
  STD_TORCH_CHECK(
      rotate_from >= 0 && rotate_from + grid[0] * grid[1] * grid[2] <= query.size(1),
      "grid must fit the tokens");
  STD_TORCH_CHECK(
      table.dim() == 2 && table.size(0) == 2 && table.size(1) == entries &&
          table.scalar_type() == ScalarType::Float,
      "table must be float32 (2, entries)");
}

// The weight of every channel as float32, pair by pair; ones without a weight.
std::vector<float> spread_weight(const std::optional<Tensor>& weight, const Layout& layout) {
  std::vector<float> values(layout.width(), 1.0f);
  if (!weight || values.empty()) return values;
  const int64_t dim = 2 * layout.pairs, length = layout.groups == 1 ? layout.width() : dim;
  STD_TORCH_CHECK(
      layout.norm && weight->dim() == 1 && weight->size(0) == length, "weight must be (H*D,) or (D,)");
  with_storage_type("weight", *weight, [&](auto storage) {
    using W = decltype(storage);
    const W* data = static_cast<const W*>(weight->data_ptr());
    const int64_t stride = weight->stride(0);
    for (int64_t h = 0; h < layout.heads; ++h)
      for (int64_t which = 0; which < 2; ++which)
        for (int64_t pair = 0; pair < layout.pairs; ++pair) {
          const int64_t channel = (h * dim + layout.channel(pair, which)) % length;
          values[h * dim + which * layout.pairs + pair] = portable::to_float(data[channel * stride]);
        }
  });
  return values;
}

// The other way: the gradient of the weight, from the float32 sums of every part of the tokens.
Tensor gather_weight_grad(
    const Tensor& query, const std::optional<Tensor>& weight, bool wanted, const Layout& layout,
    const std::vector<float>& part_sums) {
  if (!weight || !wanted) return torch::stable::new_empty(query, {0});
  Tensor grad = torch::stable::new_empty(*weight, weight->sizes());
  const int64_t width = layout.width(), dim = 2 * layout.pairs, length = weight->size(0);
  std::vector<float> sums(width), total(length);
  if (width) FYM_DISPATCH(sum_rows<float>)(sums.data(), part_sums.data(), part_sums.size() / width, width);
  for (int64_t h = 0; h < layout.heads; ++h)
    for (int64_t which = 0; which < 2; ++which)
      for (int64_t pair = 0; pair < layout.pairs; ++pair)
        total[(h * dim + layout.channel(pair, which)) % length] += sums[h * dim + which * layout.pairs + pair];
  with_storage_type("weight", *weight, [&](auto storage) {
    auto* out = static_cast<decltype(storage)*>(grad.data_ptr());
    for (int64_t i = 0; i < length; ++i) portable::from_float(total[i], out + i);
  });
  return grad;
}

// One of query and key, forward.
template <class T>
struct Forward {
  Heads<T> x;
  T* out;
  float* rstd;
  std::vector<float> weight;

  void row(const Layout& layout, int64_t b, int64_t token, const Rotation& rotation, float eps) const {
    const auto heads = !layout.interleaved         ? FYM_DISPATCH(rope_forward_heads<T, false, 0>)
                       : layout.pairs == usual_pairs ? FYM_DISPATCH(rope_forward_heads<T, true, usual_pairs>)
                                                     : FYM_DISPATCH(rope_forward_heads<T, true, 0>);
    const int64_t row = b * layout.tokens + token, per_group = layout.heads_per_group();
    for (int64_t group = 0; group < layout.groups; ++group)
      heads(
          out + row * layout.width(), layout.norm ? rstd + row * layout.groups + group : nullptr, x(b, token),
          x.stride_h, weight.data(), rotation.cos(), rotation.sin(), group * per_group,
          (group + 1) * per_group, layout.pairs, eps);
  }
};

// One of query and key, backward.
template <class T>
struct Backward {
  Heads<T> grad, x;
  T* grad_x;
  const float* rstd;
  std::vector<float> weight;
  std::vector<float> part_sums;  // empty: no gradient of the weight

  void row(
      const Layout& layout, int64_t b, int64_t token, int64_t part, const Rotation& rotation, float* scratch) {
    const auto heads = layout.interleaved ? FYM_DISPATCH(rope_backward_heads<T, true>)
                                          : FYM_DISPATCH(rope_backward_heads<T, false>);
    const int64_t row = b * layout.tokens + token, per_group = layout.heads_per_group();
    for (int64_t group = 0; group < layout.groups; ++group)
      heads(
          grad_x + row * layout.width(), part_sums.empty() ? nullptr : part_sums.data() + part * layout.width(),
          scratch, layout.norm ? rstd + row * layout.groups + group : nullptr, grad(b, token), grad.stride_h,
          x(b, token), x.stride_h, weight.data(), rotation.cos(), rotation.sin(), group * per_group,
          (group + 1) * per_group, layout.pairs);
  }
};

std::vector<int64_t> rstd_shape(const Layout& layout) {
  if (!layout.norm) return {0};
  if (layout.groups == 1) return {layout.batch, layout.tokens};
  return {layout.batch, layout.tokens, layout.heads};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> qk_norm_rope(
    Tensor query, Tensor key, std::optional<Tensor> query_weight, std::optional<Tensor> key_weight,
    Tensor table, std::vector<int64_t> grid, std::vector<int64_t> axes_dim, bool time_per_sample, double eps,
    std::string norm, int64_t rotate_from, bool interleaved) {
  check(query, key, table, grid, axes_dim, time_per_sample, norm, rotate_from);
  const Layout layout(query, norm, interleaved);
  query = with_dense_rows(query), key = with_dense_rows(key), table = torch::stable::contiguous(table);
  Tensor new_query = torch::stable::new_empty(query, query.sizes());
  Tensor new_key = torch::stable::new_empty(key, key.sizes());
  Tensor query_rstd = torch::stable::new_empty(query, rstd_shape(layout), ScalarType::Float);
  Tensor key_rstd = torch::stable::new_empty(query, rstd_shape(layout), ScalarType::Float);
  with_storage_type("query", query, [&](auto storage) {
    using T = decltype(storage);
    const auto side = [&](const Tensor& x, const Tensor& out, const Tensor& rstd, const auto& weight) {
      return Forward<T>{
          Heads<T>(x), data_of<T>(out), data_of<float>(rstd), spread_weight(weight, layout)};
    };
    const Forward<T> sides[] = {
        side(query, new_query, query_rstd, query_weight), side(key, new_key, key_rstd, key_weight)};
    const int64_t rows = layout.batch * layout.tokens;
    torch::stable::parallel_for(0, rows, grain_rows(2 * layout.width()), [&](int64_t begin, int64_t end) {
      Rotation rotation(table, grid, axes_dim, time_per_sample, rotate_from);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / layout.tokens, token = i % layout.tokens;
        rotation.move_to(b, token);
        for (const auto& s : sides) s.row(layout, b, token, rotation, static_cast<float>(eps));
      }
    });
  });
  return {new_query, new_key, query_rstd, key_rstd};
}

// Gradients of query, key and their weights; a weight's that is not wanted comes back empty.
std::tuple<Tensor, Tensor, Tensor, Tensor> qk_norm_rope_backward(
    Tensor grad_query, Tensor grad_key, Tensor query, Tensor key, std::optional<Tensor> query_weight,
    std::optional<Tensor> key_weight, Tensor query_rstd, Tensor key_rstd, Tensor table,
    std::vector<int64_t> grid, std::vector<int64_t> axes_dim, bool time_per_sample, std::string norm,
    int64_t rotate_from, bool interleaved, bool want_query_weight, bool want_key_weight) {
  check(query, key, table, grid, axes_dim, time_per_sample, norm, rotate_from);
  check_like("grad_query", grad_query, "query", query);
  check_like("grad_key", grad_key, "key", key);
  const Layout layout(query, norm, interleaved);
  grad_query = with_dense_rows(grad_query), grad_key = with_dense_rows(grad_key);
  query = with_dense_rows(query), key = with_dense_rows(key), table = torch::stable::contiguous(table);
  query_rstd = torch::stable::contiguous(query_rstd), key_rstd = torch::stable::contiguous(key_rstd);
  Tensor new_query = torch::stable::new_empty(query, query.sizes());
  Tensor new_key = torch::stable::new_empty(key, key.sizes());
  const int64_t parts = (layout.tokens + tokens_per_part - 1) / tokens_per_part;
  Tensor grad_query_weight, grad_key_weight;
  with_storage_type("query", query, [&](auto storage) {
    using T = decltype(storage);
    const auto side = [&](const Tensor& grad, const Tensor& x, const Tensor& out, const Tensor& rstd,
                          const std::optional<Tensor>& weight, bool wanted) {
      const int64_t sums = weight && wanted ? layout.batch * parts * layout.width() : 0;
      return Backward<T>{Heads<T>(grad), Heads<T>(x), data_of<T>(out), data_of<float>(rstd),
                         spread_weight(weight, layout), std::vector<float>(sums)};
    };
    Backward<T> sides[] = {
        side(grad_query, query, new_query, query_rstd, query_weight, want_query_weight),
        side(grad_key, key, new_key, key_rstd, key_weight, want_key_weight)};
    torch::stable::parallel_for(0, layout.batch * parts, 1, [&](int64_t begin, int64_t end) {
      Rotation rotation(table, grid, axes_dim, time_per_sample, rotate_from);
      std::vector<float> scratch(layout.width());
      for (int64_t part = begin; part < end; ++part) {
        const int64_t b = part / parts, first = part % parts * tokens_per_part;
        for (int64_t token = first; token < std::min(layout.tokens, first + tokens_per_part); ++token) {
          rotation.move_to(b, token);
          for (auto& s : sides) s.row(layout, b, token, part, rotation, scratch.data());
        }
      }
    });
    grad_query_weight = gather_weight_grad(query, query_weight, want_query_weight, layout, sides[0].part_sums);
    grad_key_weight = gather_weight_grad(query, key_weight, want_key_weight, layout, sides[1].part_sums);
  });
  return {new_query, new_key, grad_query_weight, grad_key_weight};
}

}  // namespace fym

STABLE_TORCH_LIBRARY_IMPL(fym_kernels, CPU, library) {
  library.impl("qk_norm_rope", TORCH_BOX(&fym::qk_norm_rope));
  library.impl("qk_norm_rope_backward", TORCH_BOX(&fym::qk_norm_rope_backward));
}

#endif
