// What qk_norm_rope knows of its tokens: where their heads are, by how much each turns, and how a thread reads and
// writes its unit of work: two vectors of a head that hold whole channel pairs, neighbours when pairs are interleaved
// (2j, 2j+1), one from each half of the head when they are (j, j + D/2).
#pragma once

#include "common.cuh"

namespace fym::gpu {

// The rows of a (B,S,H,D) tensor with dense D.
template <class T>
struct Heads {
  T* data = nullptr;
  int64_t stride_b = 0, stride_s = 0, stride_h = 0;

  __device__ T* at(int64_t b, int64_t s, int64_t h) const {
    return data + b * stride_b + s * stride_s + h * stride_h;
  }

  bool aligned() const {
    return Rows<T>{data, stride_b, stride_s}.aligned() && stride_h * sizeof(T) % vector_bytes == 0;
  }
};

// table: entries cosines, then as many sines; of each time position (of each sample, if per_sample) time_pairs, then
// of each row row_pairs, then of each column column_pairs. Tokens before and after the grid do not turn.
struct Rotary {
  const float* table;
  int64_t entries, frames, rows, columns, rotate_from;
  int time_pairs, row_pairs, column_pairs;
  bool per_sample;
};

// Where a token's entries start in the table, for each axis less the pairs of the axes before.
struct TokenAngles {
  int64_t time, row, column;
  bool turns;

  __device__ TokenAngles(const Rotary& r, int64_t b, int64_t s) {
    const int64_t place = s - r.rotate_from, plane = r.rows * r.columns;
    turns = place >= 0 && place < r.frames * plane;
    const int64_t frame = turns ? place / plane : 0, rest = turns ? place % plane : 0;
    const int64_t i = turns ? rest / r.columns : 0, j = turns ? rest % r.columns : 0;
    const int64_t rows_start = (r.per_sample ? gridDim.y : 1) * r.frames * r.time_pairs;
    time = ((r.per_sample ? b : 0) * r.frames + frame) * r.time_pairs;
    row = rows_start + i * r.row_pairs - r.time_pairs;
    column = rows_start + r.rows * r.row_pairs + j * r.column_pairs - r.time_pairs - r.row_pairs;
  }

  // (cosine, sine) of a pair; (1, 0) outside the grid and beyond the last pair.
  __device__ float2 operator()(const Rotary& r, int pair) const {
    if (!turns || pair >= r.time_pairs + r.row_pairs + r.column_pairs) return make_float2(1.0f, 0.0f);
    const int64_t start = pair < r.time_pairs ? time : pair < r.time_pairs + r.row_pairs ? row : column;
    return make_float2(read(r.table + start + pair), read(r.table + r.entries + start + pair));
  }
};

// Two vectors of one head as stored; which of their elements form pair i is known at compile time.
template <class T, bool Interleaved, bool Wide>
struct Unit {
  static constexpr int N = vector_elements<T>;  // pairs of a unit
  Pack<T, N> first, second;

  static __device__ int64_t second_offset(int64_t dim) { return Interleaved ? N : dim / 2; }
  static __device__ int64_t offset(int unit) { return static_cast<int64_t>(unit) * (Interleaved ? 2 * N : N); }

  // from: the unit's first channel, offset(unit) into the head
  __device__ void load(const T* from, int unit, int64_t dim) {
    const int64_t left = (Interleaved ? dim : dim / 2) - offset(unit);
    first = fym::gpu::load<Wide, N>(from, left);
    second = fym::gpu::load<Wide, N>(from + second_offset(dim), Interleaved ? left - N : left);
  }

  __device__ void unpack(float (&a)[N], float (&b)[N]) const {
    float one[N], two[N];
    first.unpack(one), second.unpack(two);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      a[i] = Interleaved ? (i < N / 2 ? one[2 * i % N] : two[2 * i % N]) : one[i];
      b[i] = Interleaved ? (i < N / 2 ? one[2 * i % N + 1] : two[2 * i % N + 1]) : two[i];
    }
  }
};

template <bool Interleaved, bool Wide, class T, int N>
__device__ void store_unit(T* to, const float (&a)[N], const float (&b)[N], int unit, int64_t dim) {
  // by N, not by the vectors of T: sums for 16-bit units are stored as float32
  const int64_t left = (Interleaved ? dim : dim / 2) - static_cast<int64_t>(unit) * (Interleaved ? 2 * N : N);
  float one[N], two[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    one[i] = Interleaved ? (i % 2 ? b[i / 2] : a[i / 2]) : a[i];
    two[i] = Interleaved ? (i % 2 ? b[N / 2 + i / 2] : a[N / 2 + i / 2]) : b[i];
  }
  store<Wide>(to, one, left);
  store<Wide>(to + (Interleaved ? N : dim / 2), two, Interleaved ? left - N : left);
}

// The weights of a unit's pairs; float32 whatever T is, and read from the cache.
template <bool Interleaved, bool Wide, int N>
__device__ void load_weight(const float* from, float (&a)[N], float (&b)[N], int unit, int64_t dim) {
  const int64_t left = (Interleaved ? dim : dim / 2) - static_cast<int64_t>(unit) * (Interleaved ? 2 * N : N);
  float one[N], two[N];
  load<Wide, N>(from, left).unpack(one);
  load<Wide, N>(from + (Interleaved ? N : dim / 2), Interleaved ? left - N : left).unpack(two);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    a[i] = Interleaved ? (i < N / 2 ? one[2 * i % N] : two[2 * i % N]) : one[i];
    b[i] = Interleaved ? (i < N / 2 ? one[2 * i % N + 1] : two[2 * i % N + 1]) : two[i];
  }
}

}  // namespace fym::gpu
