// Binding of qk_norm_rope for CUDA tensors.

#include "qk_norm_rope.cuh"

#include "binding.h"

namespace fym::gpu {

static Norm norm_named(const std::string& name) {
  if (name == "across_heads") return norm_across_heads;
  if (name == "per_head") return norm_per_head;
  STD_TORCH_CHECK(name == "none", "norm must be across_heads, per_head or none");
  return norm_none;
}

template <class T>
static Heads<const T> heads_of(const Launch& launch, const Tensor& x) {
  return {launch.data<const T>(x), stride_of(x, 0), stride_of(x, 1), stride_of(x, 2)};
}

static Rotary rotary_of(
    const Launch& launch, const Tensor& table, const std::vector<int64_t>& grid, const std::vector<int64_t>& axes_dim,
    bool per_sample, int64_t rotate_from, const Tensor& query) {
  STD_TORCH_CHECK(grid.size() == 3 && axes_dim.size() == 3, "grid and axes_dim must have three entries");
  int pairs[3];
  for (int i = 0; i < 3; ++i) pairs[i] = static_cast<int>(axes_dim[i] / 2);
  STD_TORCH_CHECK(2 * (pairs[0] + pairs[1] + pairs[2]) == query.size(3), "axes_dim must have the sum D");
  const int64_t entries =
      (per_sample ? query.size(0) : 1) * grid[0] * pairs[0] + grid[1] * pairs[1] + grid[2] * pairs[2];
  STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == 2 && table.size(1) == entries &&
                      table.scalar_type() == ScalarType::Float,
                  "table must be float32 of shape (2, ", entries, ")");
  STD_TORCH_CHECK(rotate_from >= 0 && rotate_from + grid[0] * grid[1] * grid[2] <= query.size(1),
                  "the grid must fit the tokens");
  return {launch.data<const float>(table), entries,  grid[0],  grid[1],  grid[2],
          rotate_from,                     pairs[0], pairs[1], pairs[2], per_sample};
}

static void check_heads(const Tensor& query, const Tensor& key) {
  STD_TORCH_CHECK(query.dim() == 4, "query must be (B,S,H,D)");
  check_same_shape("key", key, "query", query);
  STD_TORCH_CHECK(query.size(0) <= most_samples, "query must have at most ", most_samples, " samples");
  with_storage_type("query", query, [&](auto storage) {
    STD_TORCH_CHECK(rope_fits<decltype(storage)>(query.size(2), query.size(3)), "query must have at most ",
                    rope_most_width, " channels a token on the cuda backend, with D rounded up to 32 bytes");
  });
}

// A few thousand numbers, read as float32.
static std::optional<Tensor> float_weight(
    const char* name, const std::optional<Tensor>& weight, Norm norm, const Tensor& query) {
  if (!weight) return weight;
  const int64_t size = norm == norm_across_heads ? query.size(2) * query.size(3) : query.size(3);
  STD_TORCH_CHECK(norm != norm_none && weight->dim() == 1 && weight->size(0) == size, name,
                  " must be (H*D) across heads, (D) per head");
  return torch::stable::contiguous(to_type(*weight, ScalarType::Float));
}

static const float* optional_data(const Launch& launch, const std::optional<Tensor>& tensor) {
  return tensor ? launch.data<const float>(*tensor) : nullptr;
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> qk_norm_rope_cuda(
    Tensor query, Tensor key, std::optional<Tensor> query_weight, std::optional<Tensor> key_weight, Tensor table,
    std::vector<int64_t> grid, std::vector<int64_t> axes_dim, bool time_per_sample, double eps, std::string norm_name,
    int64_t rotate_from, bool interleaved) {
  check_heads(query, key);
  Launch launch(query);
  const Norm norm = norm_named(norm_name);
  query = with_dense_rows(query), key = with_dense_rows(key), table = torch::stable::contiguous(table);
  query_weight = float_weight("query_weight", query_weight, norm, query);
  key_weight = float_weight("key_weight", key_weight, norm, query);
  const int64_t batch = query.size(0), tokens = query.size(1), heads = query.size(2);
  const std::vector<int64_t> rstd_shape = norm == norm_none           ? std::vector<int64_t>{0}
                                          : norm == norm_across_heads ? std::vector<int64_t>{batch, tokens}
                                                                      : std::vector<int64_t>{batch, tokens, heads};
  Tensor query_rstd = new_floats(query, rstd_shape), key_rstd = new_floats(query, rstd_shape);
  if (query.numel() == 0) torch::stable::zero_(query_rstd), torch::stable::zero_(key_rstd);
  Tensor new_query = torch::stable::new_empty(query, query.sizes());
  Tensor new_key = torch::stable::new_empty(key, key.sizes());
  with_storage_type("query", query, [&](auto storage) {
    using T = decltype(storage);
    QkNormRope<T> p{};
    p.query = {heads_of<T>(launch, query), {}, optional_data(launch, query_weight), launch.data<T>(new_query),
               launch.data<float>(query_rstd)};
    p.key = {heads_of<T>(launch, key), {}, optional_data(launch, key_weight), launch.data<T>(new_key),
             launch.data<float>(key_rstd)};
    p.rotary = rotary_of(launch, table, grid, axes_dim, time_per_sample, rotate_from, query);
    p.batch = batch, p.tokens = tokens, p.heads = heads, p.dim = query.size(3);
    p.norm = norm, p.eps = static_cast<float>(eps);
    qk_norm_rope<T>(p, interleaved, launch);
  });
  return {new_query, new_key, query_rstd, key_rstd};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> qk_norm_rope_backward_cuda(
    Tensor grad_query, Tensor grad_key, Tensor query, Tensor key, std::optional<Tensor> query_weight,
    std::optional<Tensor> key_weight, Tensor query_rstd, Tensor key_rstd, Tensor table, std::vector<int64_t> grid,
    std::vector<int64_t> axes_dim, bool time_per_sample, std::string norm_name, int64_t rotate_from, bool interleaved,
    bool want_query_weight, bool want_key_weight) {
  check_heads(query, key);
  check_same_shape("grad_query", grad_query, "query", query);
  check_same_shape("grad_key", grad_key, "query", query);
  Launch launch(query);
  const Norm norm = norm_named(norm_name);
  const Tensor inputs[2] = {with_dense_rows(query), with_dense_rows(key)};
  const Tensor grads[2] = {with_dense_rows(grad_query), with_dense_rows(grad_key)};
  const std::optional<Tensor> given[2] = {query_weight, key_weight};
  const std::optional<Tensor> weights[2] = {float_weight("query_weight", query_weight, norm, query),
                                            float_weight("key_weight", key_weight, norm, query)};
  const Tensor rstds[2] = {torch::stable::contiguous(query_rstd), torch::stable::contiguous(key_rstd)};
  const bool wanted[2] = {want_query_weight, want_key_weight};
  table = torch::stable::contiguous(table);
  const int64_t batch = query.size(0), tokens = query.size(1), heads = query.size(2), dim = query.size(3);
  Tensor outs[2] = {torch::stable::new_empty(query, query.sizes()), torch::stable::new_empty(key, key.sizes())};
  Tensor weight_grads[2] = {torch::stable::new_empty(query, {0}), torch::stable::new_empty(query, {0})};
  with_storage_type("query", query, [&](auto storage) {
    using T = decltype(storage);
    const Rotary rotary = rotary_of(launch, table, grid, axes_dim, time_per_sample, rotate_from, query);
    QkNormRope<T> p{};
    for (int i = 0; i < 2; ++i)
      (i == 0 ? p.query : p.key) = RopeSide<T>{heads_of<T>(launch, inputs[i]), heads_of<T>(launch, grads[i]),
                                    optional_data(launch, weights[i]), launch.data<T>(outs[i]),
                                    launch.data<float>(rstds[i])};
    p.rotary = rotary;
    p.batch = batch, p.tokens = tokens, p.heads = heads, p.dim = dim, p.norm = norm;
    qk_norm_rope_backward<T>(p, interleaved, launch);
    for (int i = 0; i < 2; ++i) {
      if (!wanted[i] || !weights[i]) continue;
      const Tensor partials = new_floats(query, {batch * rope_parts(tokens).count * heads * dim});
      const Tensor head_sums = new_floats(query, {norm == norm_per_head ? heads * dim : 0});
      const Tensor sum = new_floats(query, {weights[i]->size(0)});
      RopeWeight<T> w{};
      w.x = heads_of<T>(launch, inputs[i]), w.grad = heads_of<T>(launch, grads[i]);
      w.rstd = launch.data<const float>(rstds[i]), w.partials = launch.data<float>(partials), w.rotary = rotary;
      w.batch = batch, w.tokens = tokens, w.heads = heads, w.dim = dim, w.norm = norm;
      qk_norm_rope_weight<T>(w, interleaved, launch.data<float>(sum), launch.data<float>(head_sums), launch);
      weight_grads[i] = to_type(sum, given[i]->scalar_type());
    }
  });
  return {outs[0], outs[1], weight_grads[0], weight_grads[1]};
}

}  // namespace fym::gpu

FYM_CUDA_LIBRARY(library) {
  library.impl("qk_norm_rope", TORCH_BOX(&fym::gpu::qk_norm_rope_cuda));
  library.impl("qk_norm_rope_backward", TORCH_BOX(&fym::gpu::qk_norm_rope_backward_cuda));
}
