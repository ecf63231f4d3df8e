// Four floats at a time: 64-bit Arm.
#pragma once

#include <arm_neon.h>

#include "simd_portable.h"

namespace dynorm::DYNORM_TARGET {

struct Vector {
    static constexpr size_t width = 4;
    float32x4_t v;

    Vector() = default;
    Vector(float32x4_t value) : v(value) {}
    explicit Vector(float value) : v(vdupq_n_f32(value)) {}
};

static inline Vector operator*(Vector a, Vector b) { return vmulq_f32(a.v, b.v); }
static inline Vector operator+(Vector a, Vector b) { return vaddq_f32(a.v, b.v); }
static inline Vector fma(Vector a, Vector b, Vector c) { return vfmaq_f32(c.v, a.v, b.v); }
static inline Vector multiply_add(Vector a, Vector b, Vector c) { return fma(a, b, c); }
static inline Vector wide(Vector t) { return t; }

// vmin and vmax keep NaN.
static inline Vector clamp(Vector t, float limit) {
    return vmaxq_f32(vdupq_n_f32(-limit), vminq_f32(vdupq_n_f32(limit), t.v));
}

static inline Vector divide(Vector a, Vector b) { return vdivq_f32(a.v, b.v); }

// 8 bits, doubled twice; vrsqrts is (3 - a b) / 2, and the second step does without the half.
static inline Vector two_over_root(Vector q) {
    float32x4_t r = vrsqrteq_f32(q.v);
    r = vmulq_f32(r, vrsqrtsq_f32(vmulq_f32(q.v, r), r));
    return vmulq_f32(r, vfmsq_f32(vdupq_n_f32(3.0f), vmulq_f32(q.v, r), r));
}

static inline Vector load(const float* from) { return vld1q_f32(from); }
static inline void store(float* to, Vector a) { vst1q_f32(to, a.v); }

static inline Vector load(const Half* from) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from->bits)));
}
static inline void store(Half* to, Vector a) { vst1_u16(&to->bits, vreinterpret_u16_f16(vcvt_f16_f32(a.v))); }
static inline Vector load(const BFloat16* from) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&from->bits), 16));
}
static inline void store(BFloat16* to, Vector a) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a.v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    vst1_u16(&to->bits, vshrn_n_u32(vbslq_u32(vceqq_f32(a.v, a.v), rounded, quiet), 16));
}

template <class T>
static inline Vector load_partial(const T* from, size_t count) {
    T lanes[Vector::width] = {};
    std::memcpy(lanes, from, count * sizeof(T));
    return load(lanes);
}
template <class T>
static inline void store_partial(T* to, Vector a, size_t count) {
    T lanes[Vector::width];
    store(lanes, a);
    std::memcpy(to, lanes, count * sizeof(T));
}
template <class T>
static inline void store_streaming(T* to, Vector a) {
    store(to, a);
}

static inline void finish_streaming() {}

}  // namespace dynorm::DYNORM_TARGET
