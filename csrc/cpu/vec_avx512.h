// Vec with AVX-512; with FYM_HAS_BF16_CONVERSION also AVX512_BF16, which rounds to bf16 in one instruction
// (and flushes float32 subnormals, below 1.2e-38, to zero on the way). See vec.h.

namespace fym::FYM_ISA {

struct Vec {
  static constexpr int64_t width = 16;
  __m512 lanes;

  static Vec all(float value) { return {_mm512_set1_ps(value)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const bf16* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  static Vec load(const half* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }

  void store(float* p) const { _mm512_storeu_ps(p, lanes); }
  void store(bf16* p) const {
#ifdef FYM_HAS_BF16_CONVERSION
    const __m256bh rounded = _mm512_cvtneps_pbh(lanes);
    std::memcpy(p, &rounded, sizeof rounded);
#else
    const __m512i bits = _mm512_castps_si512(lanes);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(lanes, lanes, _CMP_UNORD_Q);
    const __m512i high = _mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan, nearest, quiet), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
#endif
  }
  void store(half* p) const {
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(lanes, _MM_FROUND_TO_NEAREST_INT));
  }
};

// The first and second elements of Vec::width pairs.
struct Pairs {
  Vec first, second;
};

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.lanes, b.lanes)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.lanes, b.lanes)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.lanes, b.lanes)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.lanes, b.lanes)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.lanes, b.lanes, c.lanes)}; }

inline float sum(Vec a) {
  __m256 halves[2];
  std::memcpy(halves, &a.lanes, sizeof halves);
  const __m256 eight = _mm256_add_ps(halves[0], halves[1]);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

inline Pairs load_pairs(const bf16* p) {
  const __m512i both = _mm512_loadu_si512(p);
  return {
      {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16))},
      {_mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)))}};
}

template <class T>
inline Pairs load_pairs(const T* p) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
  const __m512 low = Vec::load(p).lanes, high = Vec::load(p + Vec::width).lanes;
  return {{_mm512_permutex2var_ps(low, even, high)}, {_mm512_permutex2var_ps(low, odd, high)}};
}

template <class T>
inline void store_pairs(Pairs v, T* p) {
  const __m512i low =
      _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  Vec{_mm512_permutex2var_ps(v.first.lanes, low, v.second.lanes)}.store(p);
  Vec{_mm512_permutex2var_ps(v.first.lanes, high, v.second.lanes)}.store(p + Vec::width);
}

#ifdef FYM_HAS_BF16_CONVERSION
inline void store_pairs(Pairs v, bf16* p) {
  const __m512i zip = _mm512_set_epi16(
      31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18,
      2, 17, 1, 16, 0);
  const __m512bh rounded = _mm512_cvtne2ps_pbh(v.second.lanes, v.first.lanes);
  __m512i halves;
  std::memcpy(&halves, &rounded, sizeof halves);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(zip, halves));
}
#endif

// NaN if b is.
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.lanes, b.lanes)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.lanes, b.lanes)}; }

inline float largest(Vec a) {
  __m256 halves[2];
  std::memcpy(halves, &a.lanes, sizeof halves);
  const __m256 eight = _mm256_max_ps(halves[0], halves[1]);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

inline Vec nearest_whole(Vec a) { return {_mm512_roundscale_ps(a.lanes, _MM_FROUND_TO_NEAREST_INT)}; }

// a 2^whole, for whole numbers in [-126, 127].
inline Vec times_power_of_two(Vec a, Vec whole) { return {_mm512_scalef_ps(a.lanes, whole.lanes)}; }

}  // namespace fym::FYM_ISA
