// grad-weight's inner kernels with AVX512-VNNI: see grad_weight_kernels.h for what they compute
// and the packed layouts.
//
// vpdpbusd adds four products uint8 * int8 into each int32, without saturation. A tile keeps
// 8 g channels x 32 x channels in 16 registers, loads 32 x channels in two registers and
// broadcasts one g channel's group at a time: 10 loads for 16 multiply-adds.
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/grad_weight_kernels.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")

namespace daq_mm::cpu {
namespace {

constexpr int64_t kGroup = 4;
// Positions ahead. No more: with a power of two of channels they fall into few sets of L1.
constexpr int64_t kPrefetch = 16;

// As inline assembly because GCC 12 spills accumulators around _mm512_dpbusd_epi32.
#define DAQ_MM_DOT(acc, x, g) asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(g))

// 16 channels x 4 positions in each of four registers, channels in order.
struct Interleaved {
  __m512i part[4];
};

inline __mmask64 channel_mask(int64_t channels) {
  return channels >= kPackBlock ? ~__mmask64{0} : (__mmask64{1} << channels) - 1;
}

// The byte unpacks below work within 128-bit lanes; this order of the 4-byte words beforehand
// makes their results come out with the channels in order.
inline __m512i lane_order() {
  return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

template <typename T>
inline Interleaved interleave(const T* const* pixels, int64_t offset, __mmask64 mask,
                              __m512i order) {
  __m512i v[4];
  for (int j = 0; j < 4; ++j) {
    const __m512i bytes = _mm512_maskz_loadu_epi8(mask, pixels[j] + offset);
    v[j] = _mm512_permutexvar_epi32(order, bytes);
  }
  const __m512i low01 = _mm512_unpacklo_epi8(v[0], v[1]);
  const __m512i high01 = _mm512_unpackhi_epi8(v[0], v[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(v[2], v[3]);
  const __m512i high23 = _mm512_unpackhi_epi8(v[2], v[3]);
  return {{_mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
           _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)}};
}

template <typename T>
inline void prefetch_group(const T* const* pixels, int64_t p, int64_t count, int64_t offset) {
  if (p + kPrefetch + kGroup > count) return;
  for (int64_t j = 0; j < kGroup; ++j) {
    _mm_prefetch(reinterpret_cast<const char*>(pixels[p + kPrefetch + j] + offset), _MM_HINT_T0);
  }
}

void pack_x(const uint8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
            int64_t panel_bytes, uint8_t* packed) {
  const __mmask64 mask = channel_mask(channels);
  const __m512i order = lane_order();
  uint8_t* second = packed + panel_bytes;
  for (int64_t p = 0; p < count; p += kGroup) {
    prefetch_group(pixels, p, count, offset);
    const Interleaved v = interleave(pixels + p, offset, mask, order);
    _mm512_storeu_si512(packed, v.part[0]);
    _mm512_storeu_si512(packed + 64, v.part[1]);
    _mm512_storeu_si512(second, v.part[2]);
    _mm512_storeu_si512(second + 64, v.part[3]);
    packed += kXGroupBytes;
    second += kXGroupBytes;
  }
}

inline void add_sums(int32_t* sums, const __m512i* acc) {
  for (int j = 0; j < 4; ++j) {
    const __m512i before = _mm512_loadu_si512(sums + 16 * j);
    _mm512_storeu_si512(sums + 16 * j, _mm512_add_epi32(before, acc[j]));
  }
}

void pack_g(const int8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
            int64_t panel_bytes, int8_t* packed, int32_t* sums) {
  const __mmask64 mask = channel_mask(channels);
  const __m512i order = lane_order();
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i acc[4] = {};
  for (int64_t p = 0; p < count; p += kGroup) {
    prefetch_group(pixels, p, count, offset);
    const Interleaved v = interleave(pixels + p, offset, mask, order);
    for (int j = 0; j < 4; ++j) {
      acc[j] = _mm512_dpbusd_epi32(acc[j], ones, v.part[j]);
      int8_t* panel = packed + 2 * j * panel_bytes;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel), _mm512_castsi512_si256(v.part[j]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel + panel_bytes),
                          _mm512_extracti64x4_epi64(v.part[j], 1));
    }
    packed += kGGroupBytes;
  }
  add_sums(sums, acc);
}

void pack_g_block(const int8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
                  int8_t* packed, int32_t* sums) {
  const __mmask64 mask = channel_mask(channels);
  const __m512i order = lane_order();
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i acc[4] = {};
  for (int64_t p = 0; p < count; p += kGroup, packed += kPackBlock * kGroup) {
    const Interleaved v = interleave(pixels + p, offset, mask, order);
    for (int j = 0; j < 4; ++j) {
      acc[j] = _mm512_dpbusd_epi32(acc[j], ones, v.part[j]);
      _mm512_storeu_si512(packed + 64 * j, v.part[j]);
    }
  }
  add_sums(sums, acc);
}

void depthwise(const uint8_t* const* pixels, int64_t count, int64_t offset, int64_t channels,
               const int8_t* packed_g, int32_t* sums) {
  const __mmask64 mask = channel_mask(channels);
  const __m512i order = lane_order();
  __m512i acc[4] = {};
  for (int64_t p = 0; p < count; p += kGroup, packed_g += kPackBlock * kGroup) {
    const Interleaved v = interleave(pixels + p, offset, mask, order);
    for (int j = 0; j < 4; ++j) {
      acc[j] = _mm512_dpbusd_epi32(acc[j], v.part[j], _mm512_loadu_si512(packed_g + 64 * j));
    }
  }
  add_sums(sums, acc);
}

// One group: two registers of x against eight broadcast channels of g.
#define DAQ_MM_ROW(c)                                           \
  do {                                                          \
    const __m512i b = _mm512_set1_epi32(gw[c]);                 \
    DAQ_MM_DOT(a##c##0, x0, b);                                 \
    DAQ_MM_DOT(a##c##1, x1, b);                                 \
  } while (0)

#define DAQ_MM_EACH_ROW(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)

void tile(const uint8_t* x, const int8_t* g, int64_t groups, bool accumulate, int32_t* tile,
          const char* ahead, int64_t ahead_step) {
  // Named variables, not an array: GCC keeps these in registers.
#define DAQ_MM_ZERO(c) __m512i a##c##0 = _mm512_setzero_si512(), a##c##1 = a##c##0;
  DAQ_MM_EACH_ROW(DAQ_MM_ZERO)
#undef DAQ_MM_ZERO
  for (int64_t k = 0; k < groups; ++k) {
    const __m512i x0 = _mm512_loadu_si512(x);
    const __m512i x1 = _mm512_loadu_si512(x + 64);
    const int32_t* gw = reinterpret_cast<const int32_t*>(g);
    DAQ_MM_ROW(0);
    DAQ_MM_ROW(1);
    DAQ_MM_ROW(2);
    DAQ_MM_ROW(3);
    DAQ_MM_ROW(4);
    DAQ_MM_ROW(5);
    DAQ_MM_ROW(6);
    DAQ_MM_ROW(7);
    _mm_prefetch(ahead, _MM_HINT_T1);
    x += kXGroupBytes;
    g += kGGroupBytes;
    ahead += ahead_step;
  }
  if (accumulate) {
#define DAQ_MM_ADD(c)                                                             \
  a##c##0 = _mm512_add_epi32(a##c##0, _mm512_loadu_si512(tile + c * kXPanel));    \
  a##c##1 = _mm512_add_epi32(a##c##1, _mm512_loadu_si512(tile + c * kXPanel + 16));
    DAQ_MM_EACH_ROW(DAQ_MM_ADD)
#undef DAQ_MM_ADD
  }
#define DAQ_MM_STORE(c)                              \
  _mm512_storeu_si512(tile + c * kXPanel, a##c##0);  \
  _mm512_storeu_si512(tile + c * kXPanel + 16, a##c##1);
  DAQ_MM_EACH_ROW(DAQ_MM_STORE)
#undef DAQ_MM_STORE
}

void store_tile(const int32_t* tile, int64_t rows, const int32_t* excess, const float* scale,
                float* out, int64_t row_stride, bool stream) {
  for (int64_t r = 0; r < rows; ++r, tile += kXPanel, out += row_stride) {
    const __m512i less = _mm512_set1_epi32(excess[r]);
    const __m512 factor = _mm512_set1_ps(scale[r]);
    for (int64_t i = 0; i < kXPanel; i += 16) {
      const __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(tile + i), less);
      const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), factor);
      if (stream) {
        _mm512_stream_ps(out + i, value);
      } else {
        _mm512_storeu_ps(out + i, value);
      }
    }
  }
}

void store_sums(const int32_t* tile, int64_t range_stride, int64_t ranges, int64_t rows,
                const int64_t* excess, const float* scale, float* out, int64_t row_stride) {
  for (int64_t r = 0; r < rows; ++r, tile += kXPanel, out += row_stride) {
    const __m512i less = _mm512_set1_epi64(-excess[r]);
    const __m256 factor = _mm256_set1_ps(scale[r]);
    __m512i sums[kXPanel / 8] = {less, less, less, less};
    const int32_t* from = tile;
    for (int64_t range = 0; range < ranges; ++range, from += range_stride) {
#pragma GCC unroll 4
      for (int i = 0; i < kXPanel / 8; ++i) {
        const auto* part = reinterpret_cast<const __m256i*>(from + 8 * i);
        sums[i] = _mm512_add_epi64(sums[i], _mm512_cvtepi32_epi64(_mm256_loadu_si256(part)));
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kXPanel / 8; ++i) {
      _mm256_storeu_ps(out + 8 * i, _mm256_mul_ps(_mm512_cvtepi64_ps(sums[i]), factor));
    }
  }
}

}  // namespace

const GradWeightKernels& grad_weight_kernels_avx512() {
  static const GradWeightKernels kernels{kGroup,     pack_x, pack_g,       tile,
                                         store_tile, store_sums, pack_g_block, depthwise};
  return kernels;
}

}  // namespace daq_mm::cpu

#pragma GCC pop_options
#endif  // __x86_64__
