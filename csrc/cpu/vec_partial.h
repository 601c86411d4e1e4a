// A row vector by vector, and its tail: loads and stores of fewer than Vec::width values or pairs, where what lies
// beyond `count` loads as zero. Also sums over rows. See vec.h.

namespace fym::FYM_ISA {

struct Full {};  // in place of a count: all of the vector

template <class T>
inline Vec load(const T* p, Full) {
  return Vec::load(p);
}

template <class T>
inline void store(Vec v, T* p, Full) {
  v.store(p);
}

template <class T>
inline Pairs load_pairs(const T* p, Full) {
  return load_pairs(p);
}

template <class T>
inline void store_pairs(Pairs v, T* p, Full) {
  store_pairs(v, p);
}

// f(i, count) for the vectors of a row of n values (or pairs) that begin at i.
template <class F>
inline void each_vec(int64_t n, F f) {
  int64_t i = 0;
  for (; i + Vec::width <= n; i += Vec::width) f(i, Full{});
  if (i < n) f(i, n - i);
}

template <class T>
inline Vec load(const T* p, int64_t count) {
  T padded[Vec::width] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return Vec::load(padded);
}

template <class T>
inline void store(Vec v, T* p, int64_t count) {
  T padded[Vec::width];
  v.store(padded);
  std::memcpy(p, padded, count * sizeof(T));
}

template <class T>
inline Pairs load_pairs(const T* p, int64_t count) {
  T padded[2 * Vec::width] = {};
  std::memcpy(padded, p, 2 * count * sizeof(T));
  return load_pairs(static_cast<const T*>(padded));
}

template <class T>
inline void store_pairs(Pairs v, T* p, int64_t count) {
  T padded[2 * Vec::width];
  store_pairs(v, static_cast<T*>(padded));
  std::memcpy(p, padded, 2 * count * sizeof(T));
}

// The sums of `count` rows of d floats, in a fixed order: blocks of 16 rows first, which round less.
template <class T>
void sum_rows(T* out, const float* rows, int64_t count, int64_t d) {
  each_vec(d, [&](int64_t i, auto n) {
    Vec total{};
    for (int64_t first = 0; first < count; first += 16) {
      Vec block{};
      for (int64_t row = first; row < std::min(count, first + 16); ++row)
        block = block + load(rows + row * d + i, n);
      total = total + block;
    }
    store(total, out + i, n);
  });
}

// 2^a to 1.2 units in the last place, at least 2^-126 (so that it never underflows); NaN for NaN. a <= 127.
inline Vec exp2(Vec a) {
  const Vec held = max(Vec::all(-126.0f), a), whole = nearest_whole(held), rest = held - whole;
  Vec p = Vec::all(1.535336171e-04f);  // least relative error on [-1/2, 1/2]: 2e-9
  p = fma(p, rest, Vec::all(1.339887448e-03f));
  p = fma(p, rest, Vec::all(9.618437359e-03f));
  p = fma(p, rest, Vec::all(5.550332471e-02f));
  p = fma(p, rest, Vec::all(2.402264791e-01f));
  p = fma(p, rest, Vec::all(6.931472029e-01f));
  return times_power_of_two(fma(p, rest, Vec::all(1.0f)), whole);
}

}  // namespace fym::FYM_ISA
