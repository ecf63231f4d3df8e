// tanh and erf for AVX-512 from tables in registers: a permutation looks up the coefficients of a polynomial
// for each lane. It takes two thirds of the instructions of the rational function, and spreads them over more
// of the processor's units.
#pragma once

#include "inline.h"
#include "simd_avx512.h"

namespace dynorm::DYNORM_TARGET {

// f on 32 intervals of [0, limit], as quartics in the distance from a point of each interval: row i holds the
// coefficients of its ith power. Minimax in relative error, 5e-8 with the coefficients rounded.
using QuarticTable = float[5][32];

// erf about k / 8, for k = 0..31.
// clang-format off: columns of numbers would take half as many lines again.
alignas(64) static constexpr QuarticTable erf_table = {
    {0.0f, 0.1403162f, 0.2763264f, 0.4041169f, 0.5204999f, 0.6232409f, 0.71115565f, 0.7840751f,
     0.8427008f, 0.8883882f, 0.92290014f, 0.94817007f, 0.96610516f, 0.97844374f, 0.9866717f,
     0.99199003f, 0.9953223f, 0.997346f, 0.9985373f, 0.99921703f, 0.999593f, 0.9997946f, 0.9998994f,
     0.99995214f, 0.9999779f, 0.9999901f, 0.9999957f, 0.9999982f, 0.9999993f, 0.9999997f, 0.9999999f,
     0.99999994f},
    {1.1283791f, 1.1108848f, 1.0600138f, 0.98035276f, 0.8787826f, 0.76349956f, 0.6429311f, 0.52474505f,
     0.4151075f, 0.31827396f, 0.23652112f, 0.17035978f, 0.11893029f, 0.08047226f, 0.052774996f,
     0.033545826f, 0.020666987f, 0.01234082f, 0.0071423193f, 0.0040064775f, 0.002178284f, 0.0011478751f,
     5.862772e-04f, 2.902283e-04f, 1.3925217e-04f, 6.4758686e-05f, 2.9188559e-05f, 1.27514295e-05f,
     5.3992694e-06f, 2.2158483e-06f, 8.8139694e-07f, 3.435413e-07f},
    {6.8669215e-06f, -0.1388546f, -0.26500013f, -0.3676148f, -0.43940392f, -0.4771954f, -0.48223165f,
     -0.45918477f, -0.41509134f, -0.35803694f, -0.29566938f, -0.23423555f, -0.17842777f, -0.13078478f,
     -0.09238597f, -0.06284294f, -0.04137736f, -0.026249882f, -0.01610684f, -0.009458414f,
     -0.0053882613f, -0.0029690254f, -0.0016308577f, -8.1890944e-04f, -3.7125175e-04f, -2.0712144e-04f,
     -1.17799296e-04f, -9.844403e-05f, -7.573727e-05f, -2.1479611e-06f, 7.886146e-06f, 3.0641222e-05f},
    {-0.37667602f, -0.35823518f, -0.30878848f, -0.2347353f, -0.14645809f, -0.05575648f, 0.026649212f,
     0.0927403f, 0.1381558f, 0.1622762f, 0.1673997f, 0.15784654f, 0.1387194f, 0.114835665f, 0.09016979f,
     0.06746499f, 0.04824908f, 0.033063207f, 0.021746032f, 0.013747292f, 0.008362283f, 0.004898808f,
     0.0027658786f, 0.0015059387f, 7.922794e-04f, 4.011672e-04f, 1.9695978e-04f, 9.3222916e-05f,
     4.2617154e-05f, 1.8826748e-05f, 8.041612e-06f, -5.8443004e-07f},
    {0.01408213f, 0.06693532f, 0.12600309f, 0.16250055f, 0.18574376f, 0.1780381f, 0.1580175f,
     0.11949427f, 0.06597883f, 0.023610162f, -0.0022502188f, -0.032294612f, -0.036659196f,
     -0.045277905f, -0.04067587f, -0.056104604f, -0.02374327f, -0.020176852f, -0.010048067f,
     -0.027465818f, -0.023143176f, -0.016587537f, 0.0014080749f, -0.0057980404f, -0.0129309585f,
     6.3823076e-04f, 0.005577933f, 0.014032291f, 0.014473326f, -0.0015367313f, -0.00287707f,
     -0.008062179f},
};

// tanh from k / 2^m - 5/8 on, a point of the grid that the exponent and the first three bits behind it of
// |t| + 5/8 name: intervals of 1/16 near zero and of 1 near the end, where tanh hardly changes. Of the five bits
// that a permutation looks at, two are the end of the exponent: in [8, 16) they are those of [1/2, 1), whose
// first two places are free, since nothing is below 5/8.
alignas(64) static constexpr QuarticTable tanh_table = {
    {0.87982666f, 0.92534626f, 0.9540453f, 0.97187275f, 0.982845f, 0.98955977f, 0.9936546f, 0.99614656f,
     0.997661f, 0.9991389f, 0.99968314f, 0.9998834f, 0.9999571f, 0.9999842f, 0.9999942f, 0.99999785f,
     0.9999992f, 0.9999999f, 0.0f, 0.062418748f, 0.124353f, 0.1853332f, 0.24491866f, 0.30270973f,
     0.3583574f, 0.46211717f, 0.5545997f, 0.63514894f, 0.7039056f, 0.7615942f, 0.8093011f, 0.84828365f},
    {0.22591026f, 0.14372982f, 0.08979212f, 0.055462208f, 0.03401742f, 0.020768393f, 0.012653402f,
     0.0076881954f, 0.0046704235f, 0.0017206778f, 6.325537e-04f, 2.3331576e-04f, 8.737107e-05f,
     3.2611406e-05f, 1.0139736e-05f, 4.9302685e-06f, 1.2235988e-06f, 8.5002125e-07f, 1.0f, 0.9961032f,
     0.9845378f, 0.9656475f, 0.94001645f, 0.9083672f, 0.87157965f, 0.78644633f, 0.6924252f, 0.59658915f,
     0.5045232f, 0.41996974f, 0.34503013f, 0.2804129f},
    {-0.19888689f, -0.13289483f, -0.08553384f, -0.053859346f, -0.033449646f, -0.020481078f,
     -0.012621237f, -0.007579915f, -0.004623989f, -0.0017058756f, -6.199335e-04f, -2.3374411e-04f,
     -1.0132543e-04f, -4.195934e-05f, 3.125152e-06f, -1.0842454e-05f, 2.0324376e-07f, -5.148409e-06f,
     8.095733e-06f, -0.06210842f, -0.122542545f, -0.17862184f, -0.2303526f, -0.2750027f, -0.31232414f,
     -0.36340308f, -0.3843031f, -0.3790973f, -0.3554256f, -0.3196943f, -0.27918854f, -0.23780383f},
    {0.10071544f, 0.0742737f, 0.050620984f, 0.03336684f, 0.021436697f, 0.012814245f, 0.008515185f,
     0.0044874176f, 0.0028658537f, 0.0010594645f, 3.6304508e-04f, 1.515229e-04f, 1.04771156e-04f,
     5.352325e-05f, -3.9687457e-05f, 2.3762606e-05f, -1.909854e-06f, 1.23735545e-05f, -0.33398163f,
     -0.33044827f, -0.31039542f, -0.29812598f, -0.25393105f, -0.21888666f, -0.17880951f, -0.09396652f,
     -0.013170748f, 0.045074712f, 0.08646068f, 0.10226593f, 0.11082335f, 0.10769556f},
    {-0.025930699f, -0.0225329f, -0.016801512f, -0.012397068f, -0.008699227f, -0.0044461717f,
     -0.0040132017f, -0.0010166741f, -9.53258e-04f, -3.532178e-04f, -1.0214856e-04f, -5.5512915e-05f,
     -6.942505e-05f, -4.051654e-05f, 4.446198e-05f, -2.1999342e-05f, 1.162212e-06f, -9.530745e-06f,
     0.016620351f, 0.07142173f, 0.06867583f, 0.19792272f, 0.121139005f, 0.15628687f, 0.17041567f,
     0.1575999f, 0.108702645f, 0.0752394f, 0.03196953f, 0.025328923f, -0.001345155f, -0.013155393f},
};
// clang-format on

// A place in a table and the distance from its point, for n vectors side by side.
template <int n>
struct Lookup {
    __m512 distance[n];
    __m512i index[n];
};

// min gives its second operand where one is NaN: |t| comes second, so that it stays NaN.
static DYNORM_INLINE __m512 size_up_to(__m512 t, float limit) {
    return _mm512_min_ps(_mm512_set1_ps(limit), _mm512_abs_ps(t));
}

// The quartics' values with the signs of t.
template <int n>
static DYNORM_INLINE void look_up(const QuarticTable& table, const Lookup<n>& at, Vector (&t)[n]) {
    const auto coefficient = [&](int power, int i) {
        return _mm512_permutex2var_ps(_mm512_load_ps(table[power]), at.index[i],
                                      _mm512_load_ps(table[power] + 16));
    };
    __m512 sum[n];
    DYNORM_UNROLL
    for (int i = 0; i < n; ++i) sum[i] = coefficient(4, i);
    DYNORM_UNROLL
    for (int power = 3; power >= 0; --power) {
        DYNORM_UNROLL
        for (int i = 0; i < n; ++i) sum[i] = _mm512_fmadd_ps(sum[i], at.distance[i], coefficient(power, i));
    }
    const __m512i sign = _mm512_set1_epi32(int(0x80000000u));
    constexpr int and_then_or = 0xea;  // (first & second) | third
    DYNORM_UNROLL
    for (int i = 0; i < n; ++i) {
        t[i] = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(t[i].v), sign,
                                                             _mm512_castps_si512(sum[i]), and_then_or));
    }
}

template <int n>
static DYNORM_INLINE void error_functions(Vector (&t)[n]) {
    // Adding 1.5 * 2^20 leaves |t|, rounded to eighths, in the last bits; a permutation looks at the last five.
    const __m512 shift = _mm512_set1_ps(0x1.8p20f);
    Lookup<n> at;
    DYNORM_UNROLL
    for (int i = 0; i < n; ++i) {
        const __m512 size = size_up_to(t[i].v, 3.93f);
        const __m512 shifted = _mm512_add_ps(size, shift);
        at.index[i] = _mm512_castps_si512(shifted);
        at.distance[i] = _mm512_sub_ps(size, _mm512_sub_ps(shifted, shift));
    }
    look_up(erf_table, at, t);
}

template <int n>
static DYNORM_INLINE void hyperbolic_tangents(Vector (&t)[n]) {
    constexpr int bits_below = 23 - 3;
    const __m512 offset = _mm512_set1_ps(0.625f);
    const __m512i grid = _mm512_set1_epi32(-(1 << bits_below));
    Lookup<n> at;
    DYNORM_UNROLL
    for (int i = 0; i < n; ++i) {
        const __m512 size = size_up_to(t[i].v, 9.02f);
        const __m512i bits = _mm512_castps_si512(_mm512_add_ps(size, offset));
        const __m512 point = _mm512_castsi512_ps(_mm512_and_si512(bits, grid));
        at.index[i] = _mm512_srli_epi32(bits, bits_below);
        at.distance[i] = _mm512_sub_ps(size, _mm512_sub_ps(point, offset));
    }
    look_up(tanh_table, at, t);
}

}  // namespace dynorm::DYNORM_TARGET
