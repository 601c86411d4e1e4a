// What qk_norm_rope knows of its tokens: where their heads are, which share a norm, and by how much each turns.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "binding.h"

namespace fym {
namespace {

// Where a token's heads are: (B,S,H,D) with D dense.
template <class T>
struct Heads {
  T* data;
  int64_t stride_b, stride_s, stride_h;

  explicit Heads(const Tensor& tensor)
      : data(static_cast<T*>(tensor.data_ptr())),
        stride_b(tensor.stride(0)),
        stride_s(tensor.stride(1)),
        stride_h(tensor.stride(2)) {}

  T* operator()(int64_t b, int64_t s) const { return data + b * stride_b + s * stride_s; }
};

// What does not depend on the token.
struct Layout {
  int64_t batch, tokens, heads, pairs, groups;  // groups: of heads that share a norm
  bool norm, interleaved;

  Layout(const Tensor& query, const std::string& kind, bool interleaved)
      : batch(query.size(0)),
        tokens(query.size(1)),
        heads(query.size(2)),
        pairs(query.size(3) / 2),
        groups(kind == "per_head" ? heads : 1),
        norm(kind != "none"),
        interleaved(interleaved) {}

  int64_t width() const { return heads * 2 * pairs; }
  int64_t heads_per_group() const { return heads / std::max<int64_t>(1, groups); }
  int64_t channel(int64_t pair, int64_t which) const {  // of a head
    return interleaved ? 2 * pair + which : which * pairs + pair;
  }
};

// The cosines and sines of one token, assembled from the tables per axis; consecutive tokens mostly share
// their frame and row.
class Rotation {
 public:
  Rotation(
      const Tensor& table, const std::vector<int64_t>& grid, const std::vector<int64_t>& axes_dim,
      bool time_per_sample, int64_t rotate_from)
      : table_(static_cast<const float*>(table.data_ptr())),
        entries_(table.size(1)),
        frames_per_sample_(time_per_sample ? grid[0] : 0),
        rotate_from_(rotate_from) {
    int64_t pairs = 0;
    for (int64_t n : axes_dim) pairs += n / 2;
    values_.resize(2 * pairs);
    for (int axis = 0; axis < 3; ++axis) grid_[axis] = grid[axis], pairs_[axis] = axes_dim[axis] / 2;
    start_[2] = entries_ - grid[2] * pairs_[2];
    start_[1] = start_[2] - grid[1] * pairs_[1];
  }

  void move_to(int64_t b, int64_t token) {
    const int64_t place = token - rotate_from_;
    if (place < 0 || place >= grid_[0] * grid_[1] * grid_[2]) {
      if (at_[0] == outside) return;
      std::fill(values_.begin(), values_.begin() + size(), 1.0f);
      std::fill(values_.begin() + size(), values_.end(), 0.0f);
      at_ = {outside, outside, outside};
      return;
    }
    const int64_t plane = grid_[1] * grid_[2];
    const std::array<int64_t, 3> at{
        place / plane + b * frames_per_sample_, place % plane / grid_[2], place % grid_[2]};
    for (int64_t axis = 0, pair = 0; axis < 3; pair += pairs_[axis++]) {
      if (at[axis] == at_[axis]) continue;
      const float* entry = table_ + start_[axis] + at[axis] * pairs_[axis];
      std::copy_n(entry, pairs_[axis], values_.begin() + pair);
      std::copy_n(entry + entries_, pairs_[axis], values_.begin() + size() + pair);
    }
    at_ = at;
  }

  const float* cos() const { return values_.data(); }
  const float* sin() const { return values_.data() + size(); }

 private:
  static constexpr int64_t nowhere = -2, outside = -1;

  int64_t size() const { return static_cast<int64_t>(values_.size()) / 2; }

  const float* table_;
  int64_t entries_, frames_per_sample_, rotate_from_;
  std::array<int64_t, 3> grid_{}, pairs_{}, start_{}, at_{nowhere, nowhere, nowhere};
  std::vector<float> values_;
};

}  // namespace
}  // namespace fym
