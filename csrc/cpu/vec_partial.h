// Loads and stores of at most Vec::width values: the tail of a row. Lanes beyond `count` load as zero. See vec.h.

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

}  // namespace fym::FYM_ISA
