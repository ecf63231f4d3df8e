// One float at a time, for processors without a vector header of their own; also the arithmetic of double
// everywhere.
#pragma once

#include <cmath>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "kernels.h"

namespace dynorm::DYNORM_TARGET {

// Without hardware FMA the product is formed in double, where it is exact: a libm call per element would cost
// more.
static inline float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(a, b, c);
#else
    return float(double(a) * double(b) + double(c));
#endif
}
static inline double fma(double a, double b, double c) { return a * b + c; }

static inline float multiply_add(float a, float b, float c) { return a * b + c; }
static inline double multiply_add(double a, double b, double c) { return a * b + c; }

// Comparisons that are false for NaN leave it as it is.
static inline float clamp(float t, float limit) { return t > limit ? limit : t < -limit ? -limit : t; }
static inline double clamp(double t, double limit) { return t > limit ? limit : t < -limit ? -limit : t; }

// Without FMA a rational function in float would lose 4e-7; on the way it is held in double.
static inline double wide(float t) { return t; }
static inline float divide(double a, double b) { return float(a / b); }
static inline float two_over_root(float q) { return 2.0f / __builtin_sqrtf(q); }
static inline double two_over_root(double q) { return 2.0 / __builtin_sqrt(q); }

template <class Real>
static inline Real inverse_root(float beta) {
    return Real(1.0 / __builtin_sqrt(double(beta)));
}

static inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
static inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float widen(float value) { return value; }
static inline double widen(double value) { return value; }
static inline float widen(BFloat16 value) { return bits_to_float(uint32_t(value.bits) << 16); }

static inline float widen(Half value) {
#ifdef __F16C__
    return _cvtsh_ss(value.bits);
#else
    const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
    const uint32_t magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    // Read as a float32 exponent field, a half is 2^112 too small; the product is exact, denormals included.
    const float scaled = bits_to_float(magnitude << 13) * 0x1p112f;
    return bits_to_float(float_to_bits(scaled) | sign);
#endif
}

static inline void narrow(float value, float* out) { *out = value; }
static inline void narrow(double value, double* out) { *out = value; }

static inline void narrow(float value, BFloat16* out) {
    const uint32_t bits = float_to_bits(value);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t to_even = bits + 0x7fffu + (bits >> 16 & 1u);
    out->bits = uint16_t((nan ? bits | 0x400000u : to_even) >> 16);
}

static inline void narrow(float value, Half* out) {
#ifdef __F16C__
    out->bits = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
    const uint32_t bits = float_to_bits(value);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {  // 65520, half way to the power of two above the largest half
        half = 0x7c00u;
    } else if (magnitude <
               0x38800000u) {  // below 2^-14: adding 1/2 leaves the denormal's bits, rounded, at the end
        half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    }
    out->bits = uint16_t(sign | half);
#endif
}

}  // namespace dynorm::DYNORM_TARGET
