// erf for AVX-512 from a table in registers: fewer instructions than the rational function, and the
// processor has two units for them all.
#pragma once

#include "simd_avx512.h"

namespace dynorm::DYNORM_TARGET {

// erf(a) / a about a = k / 8, as a quartic in a - k / 8: row i holds the coefficients of (a - k / 8)^i for k
// = 0..31. Minimax in relative error on each eighth, 3e-9 before rounding.
alignas(64) static constexpr float erf_table[5][32] = {
    {1.12837923f,  1.12252963f,  1.10530555f,  1.07764506f,  1.04099977f,  0.997185409f, 0.948207498f,
     0.896085799f, 0.842700779f, 0.789678454f, 0.738320112f, 0.689578235f, 0.644070089f, 0.602119207f,
     0.563812375f, 0.529061377f, 0.497661144f, 0.469339281f, 0.44379434f,  0.420722961f, 0.399837226f,
     0.380874157f, 0.363599777f, 0.347809434f, 0.333325982f, 0.319996834f, 0.307690978f, 0.296295762f,
     0.28571406f,  0.275861979f, 0.266666651f, 0.258064508f},
    {7.01056635e-09f, -0.0931548551f, -0.181165561f,  -0.259445876f,  -0.324434102f,  -0.373897165f,
     -0.407035083f,   -0.424389303f,  -0.427593231f,  -0.419026196f,  -0.40143922f,   -0.377613485f,
     -0.350093275f,   -0.3210136f,    -0.292021424f,  -0.264275014f,  -0.238497123f,  -0.215058133f,
     -0.194067582f,   -0.175459579f,  -0.159063578f,  -0.144657627f,  -0.132004902f,  -0.120876245f,
     -0.111062236f,   -0.102378257f,  -0.0946651623f, -0.0877875537f, -0.0816310495f, -0.0760992467f,
     -0.071110867f,   -0.0665972009f},
    {-0.376127213f,  -0.365645349f, -0.33535096f,  -0.288496375f, -0.229913756f, -0.165263668f, -0.100217454f,
     -0.0397286937f, 0.0124856345f, 0.0541936122f, 0.0846300647f, 0.104268044f,  0.114465095f,  0.117074467f,
     0.114094339f,   0.10740082f,   0.0985815674f, 0.0888630152f, 0.0791099593f, 0.0698712617f, 0.0614471585f,
     0.0539598018f,  0.0474155135f, 0.041753687f,  0.0368814953f, 0.0326962881f, 0.0290985554f, 0.0259983763f,
     0.023317758f,   0.020990679f,  0.0189620163f, 0.0171860345f},
    {3.23404893e-05f, 0.0552828759f,  0.104546495f,    0.142760739f,   0.166655943f,    0.175119057f,
     0.169156983f,    0.151477456f,   0.125822365f,    0.0962270796f,  0.066366531f,    0.0391031578f,
     0.0162746459f,   -0.0012917975f, -0.0136049958f,  -0.021252919f,  -0.0251360219f,  -0.0262420401f,
     -0.0254876595f,  -0.0236300863f, -0.0212367177f,  -0.0186946411f, -0.016241705f,   -0.014004644f,
     -0.0120351007f,  -0.0103387907f, -0.00889665913f, -0.0076787835f, -0.00665264158f, -0.00578746619f,
     -0.00505613908f, -0.00443568733f},
    {0.112399057f,   0.10645847f,    0.0888992473f,  0.0628347471f,  0.0323289298f,   0.00180507649f,
     -0.0248047616f, -0.0447114706f, -0.0565944053f, -0.0605790988f, -0.0579087734f,  -0.0505159646f,
     -0.0404984429f, -0.0297433846f, -0.0196792446f, -0.0111895222f, -0.00465324149f, -6.18795384e-05f,
     0.00283748773f, 0.00441076886f, 0.00503809331f, 0.00505333766f, 0.00471718656f,  0.00421394361f,
     0.00366188469f, 0.00312899891f, 0.00264870329f, 0.00223285705f, 0.00188125437f,  0.00158786948f,
     0.00134457753f, 0.00114314654f},
};

static inline Vector error_function(Vector t) {
    // Adding 1.5 * 2^20 leaves a, rounded to eighths, in the last bits; a permutation looks at the last five.
    const __m512 shift = _mm512_set1_ps(0x1.8p20f);
    const __m512 a = _mm512_min_ps(_mm512_set1_ps(3.93f), _mm512_abs_ps(t.v));
    const __m512 shifted = _mm512_add_ps(a, shift);
    const __m512i eighth = _mm512_castps_si512(shifted);
    const Vector rest = _mm512_sub_ps(a, _mm512_sub_ps(shifted, shift));
    const auto coefficient = [&](int i) -> Vector {
        return _mm512_permutex2var_ps(_mm512_load_ps(erf_table[i]), eighth,
                                      _mm512_load_ps(erf_table[i] + 16));
    };
    const Vector quartic =
        fma(fma(fma(fma(coefficient(4), rest, coefficient(3)), rest, coefficient(2)), rest, coefficient(1)),
            rest, coefficient(0));
    const __m512i magnitude = _mm512_castps_si512(_mm512_mul_ps(a, quartic.v));
    constexpr int and_then_or = 0xea;  // (first & second) | third
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_castps_si512(t.v), _mm512_set1_epi32(int(0x80000000u)), magnitude, and_then_or));
}

}  // namespace dynorm::DYNORM_TARGET
