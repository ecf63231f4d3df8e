// The functions that stand in for a norm, written once for every processor.
//
//   DyISRU  y = weight * x / sqrt(beta + x^2) + bias      Stollenwerk, arXiv 2503.21708
//   DyT     y = weight * tanh(alpha * x) + bias           Zhu et al., arXiv 2503.10622
//   Derf    y = weight * erf(alpha * x + shift) + bias    Chen et al., arXiv 2512.10938
//
// A function is one struct. `prepare` turns a channel's parameters into coefficients once. `apply` is the
// formula for n elements, times `factor`, by which the weight is divided once instead; where a formula is long,
// the n go through it side by side, step by step, since a processor looks only so far ahead for something to do
// while it waits for a result. V is float, double or a vector of floats. `Anywhere` is the form for parameters
// that are not `ordinary`: the struct itself where its formula serves them all. What differs between the
// processors comes from the simd_*.h header, or the .cu file, included before: fma (one rounding), multiply_add
// (one or two), clamp, wide (what a rational function is held in), divide, two_over_root (2 / sqrt(q) of normal
// numbers), inverse_root.
//
// The namespace carries the target's name because each instruction set compiles these templates with its own
// flags: under one name the linker would keep one copy, and could keep the AVX-512 one for every machine.
#pragma once

#include <cmath>

#ifndef DYNORM_TARGET
#error "define DYNORM_TARGET to the name of the instruction set before including formulas.h"
#endif

#include "inline.h"

namespace dynorm::DYNORM_TARGET {

// A function with one parameter leaves the second coefficient at zero.
template <class Real>
struct Coefficients {
    Real first;
    Real second;
};

// c[0] + u (c[1] + u (c[2] + ...))
template <int terms, class V>
DYNORM_INLINE V polynomial(V u, const float (&c)[terms]) {
    V sum = V(c[terms - 1]);
    DYNORM_UNROLL
    for (int i = terms - 2; i >= 0; --i) sum = multiply_add(sum, u, V(c[i]));
    return sum;
}

// tanh(t) = t P(t^2) / Q(t^2): minimax in relative error on [0, 9.02], 2.1e-8 before rounding. Above 9.02 the
// float32 nearest to tanh is 1. All coefficients are positive, so that no digits cancel.
template <class V>
DYNORM_INLINE V hyperbolic_tangent(V t) {
    constexpr float p[] = {0.999999979f, 0.133797195f, 0.00349403635f, 2.05835092e-05f, 1.33191076e-08f};
    constexpr float q[] = {1.0f, 0.467130347f, 0.0258710801f, 0.00032830957f, 7.76203467e-07f};
    t = clamp(t, 9.02f);
    const auto u = wide(t) * wide(t);
    return divide(wide(t) * polynomial(u, p), polynomial(u, q));
}

// erf(t) in the same way on [0, 3.93]: 1.9e-8 before rounding.
template <class V>
DYNORM_INLINE V error_function(V t) {
    constexpr float p[] = {1.12837915f,    0.190783566f,    0.0527902523f,
                           0.00377959818f, 0.000284808406f, 2.04197352e-06f};
    constexpr float q[] = {1.0f, 0.502410253f, 0.114257414f, 0.0149974153f, 0.00116521013f, 3.80040929e-05f};
    t = clamp(t, 3.93f);
    const auto u = wide(t) * wide(t);
    return divide(wide(t) * polynomial(u, p), polynomial(u, q));
}

// double is for checking models, not for speed: the C library's functions serve.
DYNORM_INLINE double hyperbolic_tangent(double t) { return ::tanh(t); }
DYNORM_INLINE double error_function(double t) { return ::erf(t); }

// Both of n values in place, where a processor has no better way (tables_avx512.h).
template <class V, int n>
DYNORM_INLINE void hyperbolic_tangents(V (&t)[n]) {
    DYNORM_UNROLL
    for (int i = 0; i < n; ++i) t[i] = hyperbolic_tangent(t[i]);
}
template <class V, int n>
DYNORM_INLINE void error_functions(V (&t)[n]) {
    DYNORM_UNROLL
    for (int i = 0; i < n; ++i) t[i] = error_function(t[i]);
}

// x / sqrt(beta + x^2) = t / sqrt(1 + t^2) with t = x / sqrt(beta): t^2 beside 1 neither overflows nor
// vanishes, whatever beta is, once t is held where the function has become +-1.
struct ScaledDyISRU {
    static constexpr int parameters = 1;
    static constexpr float factor = 2.0f;
    using Anywhere = ScaledDyISRU;

    template <class Real>
    static DYNORM_INLINE Coefficients<Real> prepare(float beta, float) {
        return {inverse_root<Real>(beta), Real(0)};
    }
    template <class V, int n>
    static DYNORM_INLINE void apply(V (&x)[n], const V (&inverse_root_beta)[n], const V (&)[n]) {
        DYNORM_UNROLL
        for (int i = 0; i < n; ++i) {
            const V t = clamp(x[i] * inverse_root_beta[i], saturation(x[i]));
            x[i] = t * two_over_root(multiply_add(t, t, V(1.0f)));
        }
    }

  private:
    // From here on t / sqrt(1 + t^2) rounds to 1 in the type of the computation.
    template <class V>
    static constexpr DYNORM_INLINE float saturation(const V&) {
        return 8192.0f;
    }
    static constexpr DYNORM_INLINE double saturation(const double&) { return 1e9; }
};

// As it is written, one multiplication less: x is held where its square is a number still. Beside that square
// an ordinary beta is nothing, so that the function has become +-1 there.
struct DyISRU {
    static constexpr int parameters = 1;
    static constexpr const char* parameter_names[2] = {"beta", ""};
    static constexpr float factor = 2.0f;
    using Anywhere = ScaledDyISRU;

    static bool ordinary(float beta, float) { return beta > 1e-30f && beta < 1e31f; }
    template <class Real>
    static DYNORM_INLINE Coefficients<Real> prepare(float beta, float) {
        return {Real(beta), Real(0)};
    }
    template <class V, int n>
    static DYNORM_INLINE void apply(V (&x)[n], const V (&beta)[n], const V (&)[n]) {
        DYNORM_UNROLL
        for (int i = 0; i < n; ++i) {
            const V t = clamp(x[i], largest_square_root(x[i]));
            x[i] = t * two_over_root(fma(t, t, beta[i]));
        }
    }

  private:
    template <class V>
    static constexpr DYNORM_INLINE float largest_square_root(const V&) {
        return 1.8e19f;
    }
    static constexpr DYNORM_INLINE double largest_square_root(const double&) { return 1e150; }
};

struct DyT {
    static constexpr int parameters = 1;
    static constexpr const char* parameter_names[2] = {"alpha", ""};
    static constexpr float factor = 1.0f;
    using Anywhere = DyT;

    static bool ordinary(float, float) { return true; }
    template <class Real>
    static DYNORM_INLINE Coefficients<Real> prepare(float alpha, float) {
        return {Real(alpha), Real(0)};
    }
    template <class V, int n>
    static DYNORM_INLINE void apply(V (&x)[n], const V (&alpha)[n], const V (&)[n]) {
        DYNORM_UNROLL
        for (int i = 0; i < n; ++i) x[i] = x[i] * alpha[i];
        hyperbolic_tangents(x);
    }
};

struct Derf {
    static constexpr int parameters = 2;
    static constexpr const char* parameter_names[2] = {"alpha", "shift"};
    static constexpr float factor = 1.0f;
    using Anywhere = Derf;

    static bool ordinary(float, float) { return true; }
    template <class Real>
    static DYNORM_INLINE Coefficients<Real> prepare(float alpha, float shift) {
        return {Real(alpha), Real(shift)};
    }
    // One rounding for alpha x + shift: where the two cancel, a second would be the whole result.
    template <class V, int n>
    static DYNORM_INLINE void apply(V (&x)[n], const V (&alpha)[n], const V (&shift)[n]) {
        DYNORM_UNROLL
        for (int i = 0; i < n; ++i) x[i] = fma(x[i], alpha[i], shift[i]);
        error_functions(x);
    }
};

}  // namespace dynorm::DYNORM_TARGET
