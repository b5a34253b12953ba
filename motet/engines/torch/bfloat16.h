// bfloat16 numbers in registers of 16 float32. What is behind this line is compiled for AVX-512.
#pragma once
#include <cstdint>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#endif
#include <immintrin.h>

namespace {

inline __m512 widened(__m256i numbers) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

// Rounded to the nearest, halves to even. NaN stays NaN: its upper bits are what is kept, and a carry would change them.
inline __m256i to_bfloat16(__m512 numbers) {
  const __m512i bits = _mm512_castps_si512(numbers);
  const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(numbers, numbers, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

}  // namespace
