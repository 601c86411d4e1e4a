// Loads and stores of at most Vec::width values or pairs: the tail of a row. What lies beyond `count` loads as
// zero. Also sums over rows. See vec.h.

namespace fym::FYM_ISA {

template <class T>
inline Vec load(const T* p, int64_t count) {
  if (count >= Vec::width) return Vec::load(p);
  T padded[Vec::width] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return Vec::load(padded);
}

template <class T>
inline void store(Vec v, T* p, int64_t count) {
  if (count >= Vec::width) return v.store(p);
  T padded[Vec::width];
  v.store(padded);
  std::memcpy(p, padded, count * sizeof(T));
}

template <class T>
inline Pairs load_pairs(const T* p, int64_t count) {
  if (count >= Vec::width) return load_pairs(p);
  T padded[2 * Vec::width] = {};
  std::memcpy(padded, p, 2 * count * sizeof(T));
  return load_pairs(static_cast<const T*>(padded));
}

template <class T>
inline void store_pairs(Pairs v, T* p, int64_t count) {
  if (count >= Vec::width) return store_pairs(v, p);
  T padded[2 * Vec::width];
  store_pairs(v, static_cast<T*>(padded));
  std::memcpy(p, padded, 2 * count * sizeof(T));
}

// The sums of `count` rows of d floats, in order.
template <class T>
void sum_rows(T* out, const float* rows, int64_t count, int64_t d) {
  for (int64_t i = 0; i < d; i += Vec::width) {
    Vec total{};
    for (int64_t row = 0; row < count; ++row) total = total + load(rows + row * d + i, d - i);
    store(total, out + i, d - i);
  }
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
