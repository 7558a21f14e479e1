// grad-weight's inner kernels with AVX2: see grad_weight_kernels.h for what they compute and the
// packed layouts.
//
// The byte product of AVX2 (vpmaddubsw) saturates its 16-bit sums, so both operands are widened to
// 16 bits when packed, two positions a group, and vpmaddwd adds their two products exactly.
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/grad_weight_kernels.h"

#pragma GCC push_options
#pragma GCC target("avx2")

namespace daq_mm::cpu {
namespace {

constexpr int64_t kGroup = 2;

// 16 channels from `pixel`, widened; channels beyond `channels` are 0 and not read.
template <typename T>
inline __m256i load_words(const T* pixel, int64_t channels) {
  alignas(16) T tail[16] = {};
  const T* source = pixel;
  if (channels < 16) {
    for (int64_t i = 0; i < channels; ++i) tail[i] = pixel[i];
    source = tail;
  }
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  return sizeof(T) == 1 && T(-1) > T(0) ? _mm256_cvtepu8_epi16(bytes) : _mm256_cvtepi8_epi16(bytes);
}

// Two positions of 16 channels, interleaved: low has channels 0-7, high 8-15, words in order.
template <typename T>
inline void interleave(const T* const* pixels, int64_t offset, int64_t channels, __m256i& low,
                       __m256i& high) {
  const __m256i even =
      _mm256_permute4x64_epi64(load_words(pixels[0] + offset, channels), 0xD8);
  const __m256i odd = _mm256_permute4x64_epi64(load_words(pixels[1] + offset, channels), 0xD8);
  low = _mm256_unpacklo_epi16(even, odd);
  high = _mm256_unpackhi_epi16(even, odd);
}

inline void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline void add_to(int32_t* sums, __m256i v) { store(sums, _mm256_add_epi32(load(sums), v)); }

void pack_x(const uint8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
            int64_t panel_bytes, uint8_t* packed) {
  for (int64_t p = 0; p < count; p += kGroup, packed += kXGroupBytes) {
    for (int64_t i = 0; i < kPackBlock; i += 16) {
      __m256i low, high;
      interleave(pixels + p, offset + i, channels - i, low, high);
      uint8_t* panel = packed + (i / kXPanel) * panel_bytes + (i % kXPanel) * 4;
      store(panel, low);
      store(panel + 32, high);
    }
  }
}

void pack_g(const int8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
            int64_t panel_bytes, int8_t* packed, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t p = 0; p < count; p += kGroup, packed += kGGroupBytes) {
    for (int64_t i = 0; i < kPackBlock; i += 16) {
      __m256i low, high;
      interleave(pixels + p, offset + i, channels - i, low, high);
      int8_t* panel = packed + (i / kGPanel) * panel_bytes;
      store(panel, low);
      store(panel + panel_bytes, high);
      add_to(sums + i, _mm256_madd_epi16(low, ones));
      add_to(sums + i + 8, _mm256_madd_epi16(high, ones));
    }
  }
}

void pack_g_block(const int8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
                  int8_t* packed, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t p = 0; p < count; p += kGroup, packed += kPackBlock * 4) {
    for (int64_t i = 0; i < kPackBlock; i += 16) {
      __m256i low, high;
      interleave(pixels + p, offset + i, channels - i, low, high);
      store(packed + 4 * i, low);
      store(packed + 4 * i + 32, high);
      add_to(sums + i, _mm256_madd_epi16(low, ones));
      add_to(sums + i + 8, _mm256_madd_epi16(high, ones));
    }
  }
}

void store_tile(const int32_t* tile, int64_t rows, const int32_t* excess, const float* scale,
                float* out, int64_t row_stride, bool) {
  for (int64_t r = 0; r < rows; ++r, tile += kXPanel, out += row_stride) {
    for (int64_t i = 0; i < kXPanel; ++i) {
      out[i] = static_cast<float>(tile[i] - excess[r]) * scale[r];
    }
  }
}

void depthwise(const uint8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
               const int8_t* packed_g, int32_t* sums) {
  for (int64_t i = 0; i < channels; i += 16) {
    __m256i sum_low = _mm256_setzero_si256(), sum_high = sum_low;
    const int8_t* g = packed_g + 4 * i;
    for (int64_t p = 0; p < count; p += kGroup, g += kPackBlock * 4) {
      __m256i low, high;
      interleave(pixels + p, offset + i, channels - i, low, high);
      sum_low = _mm256_add_epi32(sum_low, _mm256_madd_epi16(low, load(g)));
      sum_high = _mm256_add_epi32(sum_high, _mm256_madd_epi16(high, load(g + 32)));
    }
    add_to(sums + i, sum_low);
    add_to(sums + i + 8, sum_high);
  }
}

// 4 channels of g x 16 of x: 8 accumulators, so that nothing spills from 16 registers.
void quarter_tile(const uint8_t* x, const int8_t* g, int64_t groups, bool accumulate,
                  int32_t* tile) {
  __m256i a00 = _mm256_setzero_si256(), a01 = a00, a10 = a00, a11 = a00;
  __m256i a20 = a00, a21 = a00, a30 = a00, a31 = a00;
  for (int64_t k = 0; k < groups; ++k, x += kXGroupBytes, g += kGGroupBytes) {
    const __m256i x0 = load(x);
    const __m256i x1 = load(x + 32);
    const int32_t* pairs = reinterpret_cast<const int32_t*>(g);
    const __m256i g0 = _mm256_set1_epi32(pairs[0]);
    a00 = _mm256_add_epi32(a00, _mm256_madd_epi16(x0, g0));
    a01 = _mm256_add_epi32(a01, _mm256_madd_epi16(x1, g0));
    const __m256i g1 = _mm256_set1_epi32(pairs[1]);
    a10 = _mm256_add_epi32(a10, _mm256_madd_epi16(x0, g1));
    a11 = _mm256_add_epi32(a11, _mm256_madd_epi16(x1, g1));
    const __m256i g2 = _mm256_set1_epi32(pairs[2]);
    a20 = _mm256_add_epi32(a20, _mm256_madd_epi16(x0, g2));
    a21 = _mm256_add_epi32(a21, _mm256_madd_epi16(x1, g2));
    const __m256i g3 = _mm256_set1_epi32(pairs[3]);
    a30 = _mm256_add_epi32(a30, _mm256_madd_epi16(x0, g3));
    a31 = _mm256_add_epi32(a31, _mm256_madd_epi16(x1, g3));
  }
  const __m256i acc[8] = {a00, a01, a10, a11, a20, a21, a30, a31};
  for (int i = 0; i < 8; ++i) {
    int32_t* out = tile + (i / 2) * kXPanel + (i % 2) * 8;
    store(out, accumulate ? _mm256_add_epi32(acc[i], load(out)) : acc[i]);
  }
}

void tile(const uint8_t* x, const int8_t* g, int64_t groups, bool accumulate, int32_t* tile,
          const char*, int64_t) {
  for (int c = 0; c < kGPanel; c += 4) {
    for (int i = 0; i < kXPanel; i += 16) {
      quarter_tile(x + 4 * i, g + 4 * c, groups, accumulate, tile + c * kXPanel + i);
    }
  }
}

}  // namespace

const GradWeightKernels& grad_weight_kernels_avx2() {
  static const GradWeightKernels kernels{kGroup,     pack_x, pack_g,       tile,
                                         store_tile, store_sums_plain, pack_g_block, depthwise};
  return kernels;
}

}  // namespace daq_mm::cpu

#pragma GCC pop_options
#endif  // __x86_64__
