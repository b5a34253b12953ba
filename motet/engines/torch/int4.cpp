// y = x Wᵀ for weights of 4 bits and activations in 8, by AVX-512's dot products of bytes (VNNI).
//
// A weight (outputs, inputs) lies in blocks of 16 outputs, and in these in groups of 32 inputs, 320 bytes each, in the
// order in which they are read:
//   16 times a scale and a zero, bfloat16: of each output;
//   4 vectors of 64 bytes: byte b of the four that belong to output o holds in vector v the code of input 8v + b in its
//   low half and of input 8v + 4 + b in its high one. A code c stands for (c - 8) * scale + zero.
// Activations are rounded to a whole multiple of a 127th of the largest of their group of 32. The sum over a group is
// one of whole numbers, and so exact; groups are added up in float32, in order: a row's result does not depend on the
// rows beside it.
#include <cstdint>

#include "bfloat16.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512vnni")
#endif

namespace {

constexpr int kGroup = 32, kOutputs = 16, kGroupBytes = 4 * kOutputs + kGroup * kOutputs / 2;
constexpr int kRows = 8;        // that read a weight while it lies in registers
constexpr int kRowsCached = 64; // whose activations stay in a core's second cache while all weights pass by
constexpr int kBlocksAtOnce = 4;

struct Activations {
  std::int8_t* codes;      // (rows, inputs)
  float* scales;           // (rows, groups)
  std::int32_t* offsets;   // (rows, groups): -8 times the sum of a group's codes
  float* sums;             // (rows, groups): of what the codes stand for
};

__m512 from_bfloat16(const std::uint16_t* numbers) {
  return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers)));
}

void quantize(const std::uint16_t* x, int groups, std::int8_t* codes, float* scales, std::int32_t* offsets, float* sums) {
  for (int g = 0; g < groups; ++g, x += kGroup, codes += kGroup) {
    const __m512 a = from_bfloat16(x), b = from_bfloat16(x + 16);
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    const bool is_finite = _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) == 0 && largest <= __FLT_MAX__;
    const __mmask16 kept = is_finite ? 0xffff : 0;  // else the group's codes are 0 and its scale is NaN
    const __m512 per_step = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    const __m512i p = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(kept, a, per_step));
    const __m512i q = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(kept, b, per_step));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtsepi32_epi8(p));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16), _mm512_cvtsepi32_epi8(q));
    const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(p, q));
    scales[g] = is_finite ? largest / 127.0f : __builtin_nanf("");
    offsets[g] = -8 * sum;
    sums[g] = scales[g] * static_cast<float>(sum);
  }
}

// R rows of activations times 16 outputs; `y` is their first, rows of `y` are `stride` apart.
template <int R>
void multiply(const std::uint8_t* weight, int groups, Activations x, std::uint16_t* y, std::int64_t stride) {
  const __m512i low = _mm512_set1_epi8(15);
  __m512 total[R];
  for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
  for (int g = 0; g < groups; ++g, weight += kGroupBytes) {
    __m512i sum[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r] = _mm512_set1_epi32(x.offsets[r * groups + g]);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const __m512i both = _mm512_loadu_si512(weight + 64 + 64 * v);
      const __m512i first = _mm512_and_si512(both, low), second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const std::int8_t* codes = x.codes + (static_cast<std::int64_t>(r) * groups + g) * kGroup + 8 * v;
        std::int32_t four, next;
        __builtin_memcpy(&four, codes, 4);
        __builtin_memcpy(&next, codes + 4, 4);
        sum[r] = _mm512_dpbusd_epi32(sum[r], first, _mm512_set1_epi32(four));
        sum[r] = _mm512_dpbusd_epi32(sum[r], second, _mm512_set1_epi32(next));
      }
    }
    const __m512i pairs = _mm512_loadu_si512(weight);
    const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    const __m512 zero = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512 exact = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_set1_ps(x.scales[r * groups + g]));
      total[r] = _mm512_fmadd_ps(exact, scale, total[r]);
      total[r] = _mm512_fmadd_ps(zero, _mm512_set1_ps(x.sums[r * groups + g]), total[r]);
    }
  }
  for (int r = 0; r < R; ++r)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + r * stride), to_bfloat16(total[r]));
}

void multiply_some(int rows, const std::uint8_t* weight, int groups, Activations x, std::uint16_t* y, std::int64_t stride) {
  switch (rows) {
    case 1: return multiply<1>(weight, groups, x, y, stride);
    case 2: return multiply<2>(weight, groups, x, y, stride);
    case 3: return multiply<3>(weight, groups, x, y, stride);
    case 4: return multiply<4>(weight, groups, x, y, stride);
    case 5: return multiply<5>(weight, groups, x, y, stride);
    case 6: return multiply<6>(weight, groups, x, y, stride);
    case 7: return multiply<7>(weight, groups, x, y, stride);
    default: return multiply<kRows>(weight, groups, x, y, stride);
  }
}

Activations from_row(Activations x, std::int64_t row, int groups) {
  return {x.codes + row * groups * kGroup, x.scales + row * groups, x.offsets + row * groups, x.sums + row * groups};
}

// The two halves of a group.
struct Pair {
  __m512 a, b;
};

float total(Pair x) { return _mm512_reduce_add_ps(_mm512_add_ps(x.a, x.b)); }

Pair times(Pair x, Pair y) { return {_mm512_mul_ps(x.a, y.a), _mm512_mul_ps(x.b, y.b)}; }

Pair minus(Pair x, float number) {
  return {_mm512_sub_ps(x.a, _mm512_set1_ps(number)), _mm512_sub_ps(x.b, _mm512_set1_ps(number))};
}

__m512 nearest(__m512 x, float scale) {
  const __m512 rounded = _mm512_roundscale_ps(_mm512_div_ps(x, _mm512_set1_ps(scale)), _MM_FROUND_TO_NEAREST_INT);
  return _mm512_min_ps(_mm512_max_ps(rounded, _mm512_set1_ps(-8)), _mm512_set1_ps(7));
}

// Codes -8 … 7, as numbers.
Pair nearest(Pair w, float scale, float zero) {
  const Pair from_zero = minus(w, zero);
  return {nearest(from_zero.a, scale), nearest(from_zero.b, scale)};
}

float one_from_bfloat16(std::uint16_t number) {
  return _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(number << 16)));
}

std::uint16_t one_to_bfloat16(float number) {
  return static_cast<std::uint16_t>(_mm256_extract_epi16(to_bfloat16(_mm512_set1_ps(number)), 0));
}

void store_code(std::uint8_t* codes, __m512 numbers) {
  const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(numbers), _mm512_set1_epi32(8));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(whole));
}

}  // namespace

// The 4-bit form of `groups` times 32 neighbouring weights, bfloat16: from levels between the least and the greatest of a
// group, the nearest codes and the line of least squares through (code, weight) are fitted to each other `rounds` times.
// A group that is not finite gets a zero that is NaN.
extern "C" void motet_int4_fit(const std::uint16_t* weight, std::int64_t groups, int rounds, std::uint8_t* codes,
                               std::uint16_t* scales, std::uint16_t* zeros, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t g = 0; g < groups; ++g) {
    const Pair w{from_bfloat16(weight + g * kGroup), from_bfloat16(weight + g * kGroup + 16)};
    const float least = _mm512_reduce_min_ps(_mm512_min_ps(w.a, w.b));
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(w.a, w.b));
    const float mean = total(w) / kGroup;
    float scale = most > least ? (most - least) / 15 : 1.0f, zero = least + 8 * scale;
    for (int round = 0; round < rounds; ++round) {
      const Pair found = nearest(w, scale, zero);
      const float middle = total(found) / kGroup;
      const Pair off = minus(found, middle);
      const float variance = total(times(off, off));
      const float slope = total(times(off, minus(w, mean))) / (variance > 0.5f ? variance : 0.5f);
      if (variance > 0 && slope > 0) scale = slope;
      zero = mean - scale * middle;
    }
    if (!(most - least <= __FLT_MAX__) || mean != mean) zero = __builtin_nanf("");
    scales[g] = one_to_bfloat16(scale);
    zeros[g] = one_to_bfloat16(zero);
    const Pair last = nearest(w, one_from_bfloat16(scales[g]), one_from_bfloat16(zeros[g]));
    store_code(codes + g * kGroup, last.a);
    store_code(codes + g * kGroup + 16, last.b);
  }
}

// x (rows, inputs) and y (rows, outputs): bfloat16. `codes` (rows, inputs) and `numbers` (3, rows, inputs / 32, 4 bytes
// each) are room to work in. `inputs` is a multiple of 32, `outputs` of 16.
extern "C" void motet_int4_multiply(const std::uint16_t* x, const std::uint8_t* weight, std::uint16_t* y, int rows,
                                    int inputs, int outputs, std::int8_t* codes, float* numbers, int threads) {
  const int groups = inputs / kGroup, blocks = outputs / kOutputs;
  const std::int64_t count = static_cast<std::int64_t>(rows) * groups;
  const Activations all{codes, numbers, reinterpret_cast<std::int32_t*>(numbers + count), numbers + 2 * count};
  const int parts = (rows + kRowsCached - 1) / kRowsCached;
  // few rows are read before the other threads are woken: nobody waits for them to come
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > kRows)
  for (int r = 0; r < rows; ++r) {
    const Activations row = from_row(all, r, groups);
    quantize(x + static_cast<std::int64_t>(r) * inputs, groups, row.codes, row.scales, row.offsets, row.sums);
  }
#pragma omp parallel for num_threads(threads) collapse(2) schedule(dynamic, kBlocksAtOnce)
  for (int part = 0; part < parts; ++part)
    for (int b = 0; b < blocks; ++b) {
      const std::uint8_t* block = weight + static_cast<std::int64_t>(b) * groups * kGroupBytes;
      const int end = rows < (part + 1) * kRowsCached ? rows : (part + 1) * kRowsCached;
      for (int r = part * kRowsCached; r < end; r += kRows)
        multiply_some(end - r < kRows ? end - r : kRows, block, groups, from_row(all, r, groups),
                      y + static_cast<std::int64_t>(r) * outputs + b * kOutputs, outputs);
    }
}
