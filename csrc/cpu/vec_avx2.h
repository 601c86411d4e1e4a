// Vec with AVX2, FMA and F16C. See vec.h.

namespace fym::FYM_ISA {

struct Vec {
  static constexpr int64_t width = 8;
  __m256 lanes;

  static Vec all(float value) { return {_mm256_set1_ps(value)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const bf16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  static Vec load(const half* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }

  void store(float* p) const { _mm256_storeu_ps(p, lanes); }
  void store(bf16* p) const {
    const __m256i bits = _mm256_castps_si256(lanes);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i nearest = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(lanes, lanes, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(nearest, quiet, is_nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  void store(half* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(lanes, _MM_FROUND_TO_NEAREST_INT));
  }
};

// The first and second elements of Vec::width pairs.
struct Pairs {
  Vec first, second;
};

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.lanes, b.lanes)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.lanes, b.lanes)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.lanes, b.lanes)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.lanes, b.lanes)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.lanes, b.lanes, c.lanes)}; }

inline float sum(Vec a) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

inline Pairs load_pairs(const bf16* p) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {
      {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16))},
      {_mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(0xffff0000)))}};
}

template <class T>
inline Pairs load_pairs(const T* p) {
  const __m256 low = Vec::load(p).lanes, high = Vec::load(p + Vec::width).lanes;
  const auto in_order = [](__m256 v) {  // shuffles stay inside each half of the register
    return Vec{_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8))};
  };
  return {in_order(_mm256_shuffle_ps(low, high, 0x88)), in_order(_mm256_shuffle_ps(low, high, 0xdd))};
}

template <class T>
inline void store_pairs(Pairs v, T* p) {
  const __m256 low = _mm256_unpacklo_ps(v.first.lanes, v.second.lanes);
  const __m256 high = _mm256_unpackhi_ps(v.first.lanes, v.second.lanes);
  Vec{_mm256_permute2f128_ps(low, high, 0x20)}.store(p);
  Vec{_mm256_permute2f128_ps(low, high, 0x31)}.store(p + Vec::width);
}

// NaN if b is.
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lanes, b.lanes)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lanes, b.lanes)}; }

inline float largest(Vec a) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

inline Vec nearest_whole(Vec a) {
  return {_mm256_round_ps(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// a 2^whole, for whole numbers in [-126, 127].
inline Vec times_power_of_two(Vec a, Vec whole) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole.lanes), _mm256_set1_epi32(127));
  return a * Vec{_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}

}  // namespace fym::FYM_ISA
