// AVX512-VNNI kernels of gemm_tiles.h (bytes layout), called by gemm_driver.cpp for the ops
// forward and grad_input.
//
// A tile of 6 pixels x 4 vectors (8 pixels for narrower panels) stays in registers over the whole
// contraction. vpdpbusd multiplies unsigned by signed bytes: signed rows become value + 128 in the
// broadcast itself (xor 0x80), and `offset` takes 128 * sum(w) off again.
//
// The instruction is written as assembly because GCC 12 copies and spills the accumulators around
// _mm512_dpbusd_epi32. All functions here are local: code compiled for AVX512 must not be shared
// with other files through the linker.

#include "cpu/gemm_tiles.h"

#if defined(__x86_64__)

// GCC's own _mm512_undefined_ps() trips this warning in every conversion (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,prfchw")

#include "cpu/finish_avx512.h"

namespace daq_mm::cpu {
namespace {

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};
template <int N>
using UpTo = typename MakeIndices<N>::type;

template <bool kSigned>
DAQ_MM_INLINE __m512i broadcast(const uint8_t* at, __m512i sign) {
  const __m512i four = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(at));
  return kSigned ? _mm512_xor_si512(four, sign) : four;
}

// One pixel's sums: kVectors vectors.
template <int kVectors>
struct Sums {
  __m512i v[kVectors];
};

template <int kVectors, int... C>
DAQ_MM_INLINE void multiply_row(Sums<kVectors>& sums, __m512i pixel, const Sums<kVectors>& weights,
                                Indices<C...>) {
  (multiply_add(sums.v[C], pixel, weights.v[C]), ...);
}

// Vector C of all pixels of a tile.
template <OutKind kOut, bool kBias, int C, typename Tile, int... P>
DAQ_MM_INLINE void store_column(const Tile& tile, const BlockTask& task, const int64_t* out_at,
                                int64_t pixels, Indices<P...>) {
  const auto column = load_column<kOut, kBias>(task.finish, C * kVector);
  uint8_t* out = task.out + C * kVector * kElementSize<kOut>;
  const int64_t lanes = task.lanes - C * kVector;
  if (kElementSize<kOut> == 4 && task.streaming) {
    ((P < pixels ? _mm512_stream_ps(reinterpret_cast<float*>(out + out_at[P]),
                                    finish<kOut, kBias>(tile.row[P].v[C], column))
                 : void()),
     ...);
  } else if (lanes >= kVector && pixels >= static_cast<int64_t>(sizeof...(P))) {
    (store<kOut>(finish<kOut, kBias>(tile.row[P].v[C], column), out + out_at[P]), ...);
  } else if (lanes > 0) {
    const __mmask16 mask = first_lanes(lanes);
    ((P < pixels ? store_some<kOut>(finish<kOut, kBias>(tile.row[P].v[C], column),
                                    out + out_at[P], mask)
                 : void()),
     ...);
  }
}

// The same with statistics of what is stored.
template <OutKind kOut, bool kBias, int C, typename Tile, int... P>
DAQ_MM_INLINE void store_column_with_stats(const Tile& tile, const BlockTask& task,
                                           RunningStats& stats, const int64_t* out_at,
                                           int64_t pixels, Indices<P...>) {
  const int64_t lanes = task.lanes - C * kVector;
  if (lanes <= 0) return;
  const auto column = load_column<kOut, kBias>(task.finish, C * kVector);
  uint8_t* out = task.out + C * kVector * kElementSize<kOut>;
  Moments moments(tile.row[0].v[C]);
  const auto result = [&](__m512i sums) __attribute__((always_inline)) {
    const __m512 y = finish<kOut, kBias>(sums, column);
    moments.take<kOut>(sums, y);
    return y;
  };
  if (kElementSize<kOut> == 4 && task.streaming) {
    ((P < pixels ? _mm512_stream_ps(reinterpret_cast<float*>(out + out_at[P]),
                                    result(tile.row[P].v[C]))
                 : void()),
     ...);
  } else if (lanes >= kVector && pixels >= static_cast<int64_t>(sizeof...(P))) {
    (store<kOut>(result(tile.row[P].v[C]), out + out_at[P]), ...);
  } else {
    const __mmask16 mask = first_lanes(lanes);
    ((P < pixels ? store_some<kOut>(result(tile.row[P].v[C]), out + out_at[P], mask) : void()),
     ...);
  }
  moments.add_into(stats, C * kVector);
}

// Vectors C and C + 1 of all pixels of a tile, as whole cache lines of bfloat16.
template <bool kBias, int C, typename Tile, int... P>
DAQ_MM_INLINE void store_two_columns(const Tile& tile, const BlockTask& task,
                                     const int64_t* out_at, Indices<P...>) {
  constexpr OutKind kOut = OutKind::kBFloat16Native;
  const auto low = load_column<kOut, kBias>(task.finish, C * kVector);
  const auto high = load_column<kOut, kBias>(task.finish, (C + 1) * kVector);
  uint8_t* out = task.out + C * kVector * kElementSize<kOut>;
  (store_pair(finish<kOut, kBias>(tile.row[P].v[C], low),
              finish<kOut, kBias>(tile.row[P].v[C + 1], high), out + out_at[P]),
   ...);
}

template <bool kBias, typename Tile, typename Pixels>
DAQ_MM_INLINE void store_whole_tile(const Tile& tile, const BlockTask& task,
                                    const int64_t* out_at, Pixels all) {
  store_two_columns<kBias, 0>(tile, task, out_at, all);
  if constexpr (Tile::kColumns == 4) store_two_columns<kBias, 2>(tile, task, out_at, all);
}

template <OutKind kOut, typename Tile, typename Pixels, int... C>
DAQ_MM_INLINE void store_tile(const Tile& tile, const BlockTask& task, const int64_t* out_at,
                              int64_t pixels, Pixels all, Indices<C...>) {
  if constexpr (kOut == OutKind::kBFloat16Native && sizeof...(C) % 2 == 0) {
    if (pixels >= Tile::kRows && task.lanes == sizeof...(C) * kVector) {
      if (task.finish.bias != nullptr) {
        store_whole_tile<true>(tile, task, out_at, all);
      } else {
        store_whole_tile<false>(tile, task, out_at, all);
      }
      return;
    }
  }
  if (task.finish.bias != nullptr) {
    (store_column<kOut, true, C>(tile, task, out_at, pixels, all), ...);
  } else {
    (store_column<kOut, false, C>(tile, task, out_at, pixels, all), ...);
  }
}

template <OutKind kOut, typename Tile, int... P, int... C>
DAQ_MM_INLINE void store_tile_with_stats(const Tile& tile, const BlockTask& task,
                                         RunningStats& stats, const int64_t* out_at,
                                         int64_t pixels, Indices<P...> all, Indices<C...>) {
  if (task.finish.bias != nullptr) {
    (store_column_with_stats<kOut, true, C>(tile, task, stats, out_at, pixels, all), ...);
  } else {
    (store_column_with_stats<kOut, false, C>(tile, task, stats, out_at, pixels, all), ...);
  }
  stats.next_tile(pixels <= static_cast<int64_t>(sizeof...(P)));
}

template <int kPixels, int kVectors>
struct Tile {
  static constexpr int kRows = kPixels;
  static constexpr int kColumns = kVectors;
  Sums<kVectors> row[kPixels];
};

template <int C, typename Tile, int... P>
DAQ_MM_INLINE void start_column(Tile& tile, const int32_t* offset, Indices<P...>) {
  const __m512i start = minus(offset + C * kVector);
  ((tile.row[P].v[C] = start), ...);
}

// The processor foresees neither the rows, which come through pointers, nor the stores, which
// leave out the other panels' lanes: fetch the next tile's while this one is computed.
template <OutKind kOut, int kVectors, int kPixels>
DAQ_MM_INLINE void prefetch_next(const BlockTask& task, int64_t p) {
  constexpr int64_t kBytes = kVectors * kVector * kElementSize<kOut>;
  if (task.prefetch_results) {
    for (int i = 0; i < kPixels; ++i) {
      const uint8_t* out = task.out + task.out_at[p + i];
      for (int64_t at = 0; at < kBytes; at += 64) __builtin_prefetch(out + at, 1, 3);
    }
  }
  if (task.rows_are_cold) {
    for (int i = 0; i < kPixels; ++i) {
      const uint8_t* row = task.rows[p + i] + task.channel_offset;
      for (int64_t at = 0; at < 4 * task.steps; at += 64) __builtin_prefetch(row + at, 0, 3);
    }
  }
}

// All pixels of the task, kPixels at a time; `stats` is null without statistics.
template <OutKind kOut, bool kSigned, int kVectors, int kPixels, int... P, int... C>
DAQ_MM_INLINE void run_tiles(const BlockTask& task, RunningStats* stats, Indices<P...> all,
                             Indices<C...> columns) {
  const __m512i sign = _mm512_set1_epi32(static_cast<int32_t>(0x80808080));
  const int64_t steps = task.steps;
  for (int64_t p = 0; p < task.pixels; p += kPixels) {
    Tile<kPixels, kVectors> tile;
    (start_column<C>(tile, task.finish.offset, all), ...);
    if (p + 2 * kPixels <= task.pixels) prefetch_next<kOut, kVectors, kPixels>(task, p + kPixels);
    for (int64_t t = 0; t < task.taps; ++t) {
      const uint8_t* const* rows = task.rows + t * task.row_stride + p;
      const uint8_t* row[kPixels] = {(rows[P] + task.channel_offset)...};
      const uint8_t* panel = task.panel + t * task.tap_stride;
      for (int64_t k = 0; k < 4 * steps; k += 4) {
        Sums<kVectors> weights;
        ((weights.v[C] = _mm512_load_si512(panel + C * 64)), ...);
        panel += kVectors * 64;
        (multiply_row(tile.row[P], broadcast<kSigned>(row[P] + k, sign), weights, columns), ...);
      }
    }
    if constexpr (!kSigned && kOut != OutKind::kInt32) {
      if (stats != nullptr) {
        store_tile_with_stats<kOut>(tile, task, *stats, task.out_at + p, task.pixels - p, all,
                                    columns);
        continue;
      }
    }
    store_tile<kOut>(tile, task, task.out_at + p, task.pixels - p, all, columns);
  }
}

template <OutKind kOut, bool kSigned, int kVectors>
void run_block(const BlockTask& task) {
  constexpr int kPixels = kVectors == 4 ? 6 : 8;
  if constexpr (!kSigned && kOut != OutKind::kInt32) {
    if (task.stats != nullptr) {
      RunningStats stats(*task.stats, kVectors);
      run_tiles<kOut, kSigned, kVectors, kPixels>(task, &stats, UpTo<kPixels>{},
                                                  UpTo<kVectors>{});
      return;
    }
  }
  run_tiles<kOut, kSigned, kVectors, kPixels>(task, nullptr, UpTo<kPixels>{}, UpTo<kVectors>{});
}

template <OutKind kOut, bool kSigned>
BlockKernel choose_vectors(int64_t vectors) {
  switch (vectors) {
    case 1:
      return run_block<kOut, kSigned, 1>;
    case 2:
      return run_block<kOut, kSigned, 2>;
    case 3:
      return run_block<kOut, kSigned, 3>;
    default:
      return run_block<kOut, kSigned, 4>;
  }
}

template <OutKind kOut>
BlockKernel choose_sign(int64_t vectors, bool is_signed) {
  return is_signed ? choose_vectors<kOut, true>(vectors) : choose_vectors<kOut, false>(vectors);
}

}  // namespace

BlockKernel block_kernel_avx512(int64_t vectors, OutKind out, bool is_signed) {
  switch (out) {
    case OutKind::kFloat:
      return choose_sign<OutKind::kFloat>(vectors, is_signed);
    case OutKind::kBFloat16:
      return choose_sign<OutKind::kBFloat16>(vectors, is_signed);
    case OutKind::kBFloat16Native:
      return choose_sign<OutKind::kBFloat16Native>(vectors, is_signed);
    case OutKind::kHalf:
      return choose_sign<OutKind::kHalf>(vectors, is_signed);
    default:
      return choose_sign<OutKind::kInt32>(vectors, is_signed);
  }
}

}  // namespace daq_mm::cpu

#pragma GCC pop_options

#endif  // __x86_64__
