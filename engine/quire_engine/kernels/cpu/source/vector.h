/* Sixteen numbers at a time: conversions, masks for what is left of a row, exp. */
#pragma once

#include <immintrin.h>
#include <stdint.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;

/* The lanes of a vector that lie inside a row of `size` when it starts at `at`. */
INLINE __mmask16 lanes_left(int64_t size, int64_t at) {
    int64_t left = size - at;
    return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
}

INLINE __m512 widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

#define ALL_LANES ((__mmask16)0xffff)

/* Loads and stores under a mask are slow where this code runs, and nearly all vectors are full. */
INLINE __m512 load_bf16(const bf16 *at, __mmask16 mask) {
    if (mask == ALL_LANES) return widen(_mm256_loadu_si256((const __m256i *)at));
    return widen(_mm256_maskz_loadu_epi16(mask, at));
}

INLINE void store_bf16(bf16 *at, __mmask16 mask, __m512 x) {
    __m256i narrow = (__m256i)_mm512_cvtneps_pbh(x);
    if (mask == ALL_LANES)
        _mm256_storeu_si256((__m256i *)at, narrow);
    else
        _mm256_mask_storeu_epi16(at, mask, narrow);
}

INLINE __m512 load_float(const float *at, __mmask16 mask) {
    return mask == ALL_LANES ? _mm512_loadu_ps(at) : _mm512_maskz_loadu_ps(mask, at);
}

INLINE void store_float(float *at, __mmask16 mask, __m512 x) {
    if (mask == ALL_LANES)
        _mm512_storeu_ps(at, x);
    else
        _mm512_mask_storeu_ps(at, mask, x);
}

/* Pairs of bfloat16, multiplied and added to float32. */
INLINE __m512 dot_pairs(__m512 sum, __m512i x, __m512i y) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
}

/* e^x to two units in the last place; 0 below -87.3, as float32 has no normal numbers there. */
INLINE __m512 exp_16(__m512 x) {
    const __m512 lowest = _mm512_set1_ps(-87.3f), highest = _mm512_set1_ps(88.7f);
    __mmask16 alive = _mm512_cmp_ps_mask(x, lowest, _CMP_NLT_UQ); /* true for NaN */
    x = _mm512_min_ps(highest, x);
    __m512 turns = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0x08);
    __m512 r = _mm512_fnmadd_ps(turns, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(turns, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.9875691500e-4f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
    y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_maskz_scalef_ps(alive, y, turns);
}

INLINE float exp_1(float x) { return _mm512_cvtss_f32(exp_16(_mm512_set1_ps(x))); }

INLINE __m512 silu_16(__m512 x) {
    __m512 one = _mm512_set1_ps(1.0f);
    __m512 turned = exp_16(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_div_ps(x, _mm512_add_ps(one, turned));
}
