// From int32 sums to stored results, for AVX512 kernels: float(sum) * scale + bias, each rounded on
// its own, to float32, bfloat16 or float16; or the sums themselves. Sums start at minus the offset.
//
// Include this inside the region of the target pragma, after <immintrin.h>: it must be compiled for
// AVX512 and stay local to the file. `Moments` are statistics of the results as stored.
#pragma once

#include "cpu/gemm_tiles.h"

#ifndef DAQ_MM_INLINE
#define DAQ_MM_INLINE inline __attribute__((always_inline))
#endif

namespace daq_mm::cpu {
namespace {

DAQ_MM_INLINE void multiply_add(__m512i& sum, __m512i unsigned_bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}

DAQ_MM_INLINE __m512i minus(const int32_t* offset) {
  return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(offset));
}

DAQ_MM_INLINE __mmask16 first_lanes(int64_t lanes) {
  return static_cast<__mmask16>(lanes >= kVector ? 0xffff : lanes <= 0 ? 0 : (1 << lanes) - 1);
}

// float32 to bfloat16, to nearest even, subnormals kept, NaN to 0x7fc0.
DAQ_MM_INLINE __m256i to_bfloat16(__m512 y) {
  const __m512i bits = _mm512_castps_si512(y);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  r = _mm512_srli_epi32(r, 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
  r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(r);
}

template <OutKind kOut>
constexpr int64_t kElementSize = kOut == OutKind::kFloat || kOut == OutKind::kInt32 ? 4 : 2;

template <OutKind kOut>
DAQ_MM_INLINE __m256i to_half_width(__m512 y) {
  if constexpr (kOut == OutKind::kHalf) {
    return _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  } else if constexpr (kOut == OutKind::kBFloat16Native) {
    return (__m256i)_mm512_cvtneps_pbh(y);
  } else {
    return to_bfloat16(y);
  }
}

// Stores one vector of results of one pixel; `y` are sums for kInt32, else float results.
template <OutKind kOut>
DAQ_MM_INLINE void store(__m512 y, uint8_t* out) {
  if constexpr (kOut == OutKind::kFloat || kOut == OutKind::kInt32) {
    _mm512_storeu_ps(out, y);
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), to_half_width<kOut>(y));
  }
}

template <OutKind kOut>
DAQ_MM_INLINE void store_some(__m512 y, uint8_t* out, __mmask16 mask) {
  if constexpr (kOut == OutKind::kFloat || kOut == OutKind::kInt32) {
    _mm512_mask_storeu_ps(out, mask, y);
  } else {
    _mm256_mask_storeu_epi16(out, mask, to_half_width<kOut>(y));
  }
}

// Stores two vectors of float results as one of bfloat16, where no value is subnormal or NaN.
DAQ_MM_INLINE void store_pair(__m512 low, __m512 high, uint8_t* out) {
  _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

// What finishes one vector of lanes.
template <bool kBias>
struct Column {
  __m512 scale;
  __m512 bias;
};

template <OutKind kOut, bool kBias>
DAQ_MM_INLINE Column<kBias> load_column(const Finish& f, int64_t lane) {
  Column<kBias> column;
  if constexpr (kOut != OutKind::kInt32) {
    column.scale = _mm512_loadu_ps(f.scale + lane);
    if constexpr (kBias) column.bias = _mm512_loadu_ps(f.bias + lane);
  }
  return column;
}

template <OutKind kOut, bool kBias>
DAQ_MM_INLINE __m512 finish(__m512i sums, const Column<kBias>& column) {
  if constexpr (kOut == OutKind::kInt32) {
    return _mm512_castsi512_ps(sums);
  } else {
    const __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), column.scale);
    return kBias ? _mm512_add_ps(y, column.bias) : y;
  }
}

// What a result is after its store.
template <OutKind kOut>
DAQ_MM_INLINE __m512 as_stored(__m512 y) {
  if constexpr (kOut == OutKind::kFloat) {
    return y;
  } else if constexpr (kOut == OutKind::kHalf) {
    return _mm512_cvtph_ps(to_half_width<kOut>(y));
  } else {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(to_half_width<kOut>(y)), 16));
  }
}

DAQ_MM_INLINE void add_to(double* sums, __m512 v) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
  const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
  _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), low));
  _mm512_storeu_pd(sums + 8, _mm512_add_pd(_mm512_loadu_pd(sums + 8), high));
}

// Statistics of a few tiles: sums in float32, which go to double every kTilesInFloat tiles.
struct RunningStats {
  static constexpr int64_t kTilesInFloat = 4;
  alignas(64) float sum[kMaxVectors * kVector] = {};
  alignas(64) float squares[kMaxVectors * kVector] = {};
  const LaneStats& to;
  int64_t vectors;
  int64_t tiles = 0;

  RunningStats(const LaneStats& stats, int64_t panel_vectors)
      : to(stats), vectors(panel_vectors) {}

  // Called after each tile; `last` after the last one.
  DAQ_MM_INLINE void next_tile(bool last) {
    if (++tiles % kTilesInFloat != 0 && !last) return;
    for (int64_t lane = 0; lane < vectors * kVector; lane += kVector) {
      add_to(to.sum + lane, _mm512_load_ps(sum + lane));
      add_to(to.squares + lane, _mm512_load_ps(squares + lane));
      _mm512_store_ps(sum + lane, _mm512_setzero_ps());
      _mm512_store_ps(squares + lane, _mm512_setzero_ps());
    }
  }
};

// Statistics of a tile's pixels for one vector of lanes: at most 8 pixels in float32.
struct Moments {
  __m512 sum, squares;
  __m512i least, most;

  DAQ_MM_INLINE explicit Moments(__m512i first_sums)
      : sum(_mm512_setzero_ps()), squares(sum), least(first_sums), most(first_sums) {}

  template <OutKind kOut>
  DAQ_MM_INLINE void take(__m512i sums, __m512 y) {
    const __m512 stored = as_stored<kOut>(y);
    sum = _mm512_add_ps(sum, stored);
    squares = _mm512_fmadd_ps(stored, stored, squares);
    least = _mm512_min_epi32(least, sums);
    most = _mm512_max_epi32(most, sums);
  }

  DAQ_MM_INLINE void add_into(RunningStats& stats, int64_t lane) const {
    _mm512_store_ps(stats.sum + lane, _mm512_add_ps(sum, _mm512_load_ps(stats.sum + lane)));
    _mm512_store_ps(stats.squares + lane,
                    _mm512_add_ps(squares, _mm512_load_ps(stats.squares + lane)));
    int32_t* least_at = stats.to.least + lane;
    int32_t* most_at = stats.to.most + lane;
    _mm512_storeu_si512(least_at, _mm512_min_epi32(least, _mm512_loadu_si512(least_at)));
    _mm512_storeu_si512(most_at, _mm512_max_epi32(most, _mm512_loadu_si512(most_at)));
  }
};

}  // namespace
}  // namespace daq_mm::cpu
