// Eight floats at a time: AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

#include "simd_portable.h"

namespace dynorm::DYNORM_TARGET {

struct Vector {
    static constexpr size_t width = 8;
    __m256 v;

    Vector() = default;
    Vector(__m256 value) : v(value) {}
    explicit Vector(float value) : v(_mm256_set1_ps(value)) {}
};

static inline Vector operator*(Vector a, Vector b) { return _mm256_mul_ps(a.v, b.v); }
static inline Vector operator+(Vector a, Vector b) { return _mm256_add_ps(a.v, b.v); }
static inline Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
static inline Vector multiply_add(Vector a, Vector b, Vector c) { return fma(a, b, c); }
static inline Vector wide(Vector t) { return t; }

// min and max return their second operand where one is NaN: t comes second, so that it stays NaN.
static inline Vector clamp(Vector t, float limit) {
    return _mm256_max_ps(_mm256_set1_ps(-limit), _mm256_min_ps(_mm256_set1_ps(limit), t.v));
}

// The divider works beside the multipliers; 12 bits and two Newton steps would take their time.
static inline Vector divide(Vector a, Vector b) { return _mm256_div_ps(a.v, b.v); }

// 11.5 bits, tripled: r (2 + e + 3/4 e^2) with e = 1 - q r^2. A second-order step would leave 2e-7.
static inline Vector two_over_root(Vector q) {
    const __m256 r = _mm256_rsqrt_ps(q.v);
    const __m256 rest = _mm256_fnmadd_ps(_mm256_mul_ps(q.v, r), r, _mm256_set1_ps(1.0f));
    const __m256 series = _mm256_fmadd_ps(rest, _mm256_set1_ps(0.75f), _mm256_set1_ps(1.0f));
    return _mm256_mul_ps(r, _mm256_fmadd_ps(rest, series, _mm256_set1_ps(2.0f)));
}

static inline __m256i first_lanes(size_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline Vector load(const float* from) { return _mm256_loadu_ps(from); }
static inline Vector load_partial(const float* from, size_t count) {
    return _mm256_maskload_ps(from, first_lanes(count));
}
static inline void store(float* to, Vector a) { _mm256_storeu_ps(to, a.v); }
static inline void store_partial(float* to, Vector a, size_t count) {
    _mm256_maskstore_ps(to, first_lanes(count), a.v);
}
static inline void store_streaming(float* to, Vector a) { _mm256_stream_ps(to, a.v); }

static inline Vector from_bits(__m128i bits, const Half*) { return _mm256_cvtph_ps(bits); }
static inline Vector from_bits(__m128i bits, const BFloat16*) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
static inline __m128i to_bits(Vector a, const Half*) {
    return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline __m128i to_bits(Vector a, const BFloat16*) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

template <class T>
static inline Vector load(const T* from) {
    return from_bits(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), from);
}
template <class T>
static inline Vector load_partial(const T* from, size_t count) {
    __m128i bits = _mm_setzero_si128();
    std::memcpy(&bits, from, count * sizeof(T));
    return from_bits(bits, from);
}
template <class T>
static inline void store(T* to, Vector a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), to_bits(a, to));
}
template <class T>
static inline void store_partial(T* to, Vector a, size_t count) {
    const __m128i bits = to_bits(a, to);
    std::memcpy(static_cast<void*>(to), &bits, count * sizeof(T));
}
template <class T>
static inline void store_streaming(T* to, Vector a) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), to_bits(a, to));
}

static inline void finish_streaming() { _mm_sfence(); }

}  // namespace dynorm::DYNORM_TARGET
