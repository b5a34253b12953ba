// Root-mean-square norms of bfloat16 rows, computed in float32 and rounded once.
#include <cmath>
#include <cstdint>

#include "bfloat16.h"

namespace {

constexpr int kLanes = 16;
constexpr std::int64_t kNumbersAlone = 1 << 15;  // that one thread has done before another one is awake

__m512 load(const std::uint16_t* numbers, __mmask16 lanes) {
  return widened(_mm256_maskz_loadu_epi16(lanes, numbers));
}

__m512 load(const float* numbers, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, numbers); }

__mmask16 lanes_from(int first, int width) {
  return width - first >= kLanes ? 0xffff : static_cast<__mmask16>((1 << (width - first)) - 1);
}

template <class Weight>
void norm(const std::uint16_t* x, const Weight* weight, std::uint16_t* y, int width, float epsilon) {
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < width; i += kLanes) {
    const __m512 numbers = load(x + i, lanes_from(i, width));
    sum = _mm512_fmadd_ps(numbers, numbers, sum);
  }
  const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / static_cast<float>(width) + epsilon));
  for (int i = 0; i < width; i += kLanes) {
    const __mmask16 lanes = lanes_from(i, width);
    const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(load(x + i, lanes), scale), load(weight + i, lanes));
    _mm256_mask_storeu_epi16(y + i, lanes, to_bfloat16(scaled));
  }
}

template <class Weight>
void all(const std::uint16_t* x, const Weight* weight, std::uint16_t* y, std::int64_t rows, int width, float epsilon,
         int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * width > kNumbersAlone)
  for (std::int64_t r = 0; r < rows; ++r) norm(x + r * width, weight, y + r * width, width, epsilon);
}

}  // namespace

// x and y (rows, width): bfloat16; weight (width): bfloat16, or float32 where `is_wide`.
extern "C" void motet_rms_norm(const std::uint16_t* x, const void* weight, int is_wide, std::uint16_t* y,
                               std::int64_t rows, int width, float epsilon, int threads) {
  if (is_wide)
    all(x, static_cast<const float*>(weight), y, rows, width, epsilon, threads);
  else
    all(x, static_cast<const std::uint16_t*>(weight), y, rows, width, epsilon, threads);
}
