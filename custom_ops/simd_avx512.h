// Sixteen floats at a time: AVX-512 F, BW, DQ, VL.
#pragma once

#include <immintrin.h>

#include "simd_portable.h"

namespace dynorm::DYNORM_TARGET {

struct Vector {
    static constexpr size_t width = 16;
    __m512 v;

    Vector() = default;
    Vector(__m512 value) : v(value) {}
    explicit Vector(float value) : v(_mm512_set1_ps(value)) {}
};

static inline Vector operator*(Vector a, Vector b) { return _mm512_mul_ps(a.v, b.v); }
static inline Vector operator+(Vector a, Vector b) { return _mm512_add_ps(a.v, b.v); }
static inline Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
static inline Vector multiply_add(Vector a, Vector b, Vector c) { return fma(a, b, c); }
static inline Vector wide(Vector t) { return t; }

// min and max return their second operand where one is NaN: t comes second, so that it stays NaN.
static inline Vector clamp(Vector t, float limit) {
    return _mm512_max_ps(_mm512_set1_ps(-limit), _mm512_min_ps(_mm512_set1_ps(limit), t.v));
}

// 14 bits, doubled by one Newton step; b is at least 1 and far from overflow.
static inline Vector divide(Vector a, Vector b) {
    const __m512 r = _mm512_rcp14_ps(b.v);
    const __m512 rest = _mm512_fnmadd_ps(b.v, r, _mm512_set1_ps(1.0f));
    return _mm512_mul_ps(a.v, _mm512_fmadd_ps(r, rest, r));
}

// 14 bits, doubled by one Newton step: r (3 - q r^2).
static inline Vector two_over_root(Vector q) {
    const __m512 r = _mm512_rsqrt14_ps(q.v);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(_mm512_mul_ps(q.v, r), r, _mm512_set1_ps(3.0f)));
}

static inline __mmask16 first_lanes(size_t count) { return __mmask16((1u << count) - 1u); }

static inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
static inline Vector load_partial(const float* from, size_t count) {
    return _mm512_maskz_loadu_ps(first_lanes(count), from);
}
static inline void store(float* to, Vector a) { _mm512_storeu_ps(to, a.v); }
static inline void store_partial(float* to, Vector a, size_t count) {
    _mm512_mask_storeu_ps(to, first_lanes(count), a.v);
}
static inline void store_streaming(float* to, Vector a) { _mm512_stream_ps(to, a.v); }

static inline Vector from_bits(__m256i bits, const Half*) { return _mm512_cvtph_ps(bits); }
static inline Vector from_bits(__m256i bits, const BFloat16*) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
static inline __m256i to_bits(Vector a, const Half*) {
    return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Not vcvtneps2bf16: it flushes denormals.
static inline __m256i to_bits(Vector a, const BFloat16*) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

template <class T>
static inline Vector load(const T* from) {
    return from_bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), from);
}
template <class T>
static inline Vector load_partial(const T* from, size_t count) {
    return from_bits(_mm256_maskz_loadu_epi16(first_lanes(count), from), from);
}
template <class T>
static inline void store(T* to, Vector a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bits(a, to));
}
template <class T>
static inline void store_partial(T* to, Vector a, size_t count) {
    _mm256_mask_storeu_epi16(to, first_lanes(count), to_bits(a, to));
}
template <class T>
static inline void store_streaming(T* to, Vector a) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), to_bits(a, to));
}

static inline void finish_streaming() { _mm_sfence(); }

}  // namespace dynorm::DYNORM_TARGET
