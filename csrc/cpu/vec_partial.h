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

}  // namespace fym::FYM_ISA
