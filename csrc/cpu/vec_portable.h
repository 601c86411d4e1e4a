// Vec in plain C++, for processors without AVX2 and for other architectures. See vec.h.

namespace fym::FYM_ISA {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(float value) { return value; }

inline float to_float(bf16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

inline float to_float(half value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  if (magnitude >= 0x0f800000) return float_of(sign | 0x7f800000 | magnitude);  // inf, nan
  return float_of(sign | bits_of(float_of(magnitude) * 0x1p112f));              // shifts the exponent's bias
}

inline void from_float(float value, float* out) { *out = value; }

inline void from_float(float value, bf16* out) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000)
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x40);  // quiet nan
  else
    out->bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // nearest, ties to even
}

inline void from_float(float value, half* out) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
  uint32_t result;
  if (magnitude > 0x7f800000)
    result = 0x7e00;
  else if (magnitude >= 0x477ff000)  // 65520 and more round to infinity
    result = 0x7c00;
  else if (magnitude < 0x38800000)  // subnormal half: adding 0.5 makes the hardware round at 2^-24
    result = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
  else
    result = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  out->bits = static_cast<uint16_t>((bits >> 16 & 0x8000) | result);
}

struct Vec {
  static constexpr int64_t width = 8;
  float lane[width];

  static Vec all(float value) {
    Vec v;
    for (int64_t i = 0; i < width; ++i) v.lane[i] = value;
    return v;
  }
  template <class T>
  static Vec load(const T* p) {
    Vec v;
    for (int64_t i = 0; i < width; ++i) v.lane[i] = to_float(p[i]);
    return v;
  }
  template <class T>
  void store(T* p) const {
    for (int64_t i = 0; i < width; ++i) from_float(lane[i], p + i);
  }
};

// The first and second elements of Vec::width pairs.
struct Pairs {
  Vec first, second;
};

inline Vec operator+(Vec a, Vec b) {
  for (int64_t i = 0; i < Vec::width; ++i) a.lane[i] += b.lane[i];
  return a;
}

inline Vec operator-(Vec a, Vec b) {
  for (int64_t i = 0; i < Vec::width; ++i) a.lane[i] -= b.lane[i];
  return a;
}

inline Vec operator*(Vec a, Vec b) {
  for (int64_t i = 0; i < Vec::width; ++i) a.lane[i] *= b.lane[i];
  return a;
}

inline Vec operator/(Vec a, Vec b) {
  for (int64_t i = 0; i < Vec::width; ++i) a.lane[i] /= b.lane[i];
  return a;
}

inline Vec fma(Vec a, Vec b, Vec c) {
  for (int64_t i = 0; i < Vec::width; ++i) c.lane[i] += a.lane[i] * b.lane[i];
  return c;
}

inline Vec fnma(Vec a, Vec b, Vec c) {
  for (int64_t i = 0; i < Vec::width; ++i) c.lane[i] -= a.lane[i] * b.lane[i];
  return c;
}

inline float sum(Vec a) {
  for (int64_t gap = Vec::width / 2; gap; gap /= 2)
    for (int64_t i = 0; i < gap; ++i) a.lane[i] += a.lane[i + gap];
  return a.lane[0];
}

template <class T>
inline Pairs load_pairs(const T* p) {
  Pairs v;
  for (int64_t i = 0; i < Vec::width; ++i) {
    v.first.lane[i] = to_float(p[2 * i]);
    v.second.lane[i] = to_float(p[2 * i + 1]);
  }
  return v;
}

template <class T>
inline void store_pairs(Pairs v, T* p) {
  for (int64_t i = 0; i < Vec::width; ++i) {
    from_float(v.first.lane[i], p + 2 * i);
    from_float(v.second.lane[i], p + 2 * i + 1);
  }
}

// NaN if b is.
inline Vec max(Vec a, Vec b) {
  for (int64_t i = 0; i < Vec::width; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}

inline Vec min(Vec a, Vec b) {
  for (int64_t i = 0; i < Vec::width; ++i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}

inline float largest(Vec a) {
  for (int64_t i = 1; i < Vec::width; ++i) a.lane[0] = std::max(a.lane[0], a.lane[i]);
  return a.lane[0];
}

inline Vec nearest_whole(Vec a) {
  for (int64_t i = 0; i < Vec::width; ++i) a.lane[i] = std::nearbyint(a.lane[i]);
  return a;
}

// a 2^whole, for whole numbers in [-126, 127].
inline Vec times_power_of_two(Vec a, Vec whole) {
  for (int64_t i = 0; i < Vec::width; ++i) a.lane[i] = std::ldexp(a.lane[i], static_cast<int>(whole.lane[i]));
  return a;
}

}  // namespace fym::FYM_ISA
