// AVX512 packing of a panel, bytes layout [place][step][vector][16 lanes][4]; see pack.h. All
// vectors of a step follow each other, so that memory is read and written in order.
// Called by pack.cpp for the ops forward and grad_input.
//
// Contiguous weights lie with taps (and for forward then depth) adjacent, channels-last ones with
// depth (forward) or lanes (grad-input). Where lanes are not adjacent, one register for each lane
// is filled with 16 groups ("slots") of 4 depths, one byte permutation puts each slot's 4 bytes
// side by side, and a 16 x 16 transpose of 32-bit words turns lanes' slots into slots' lanes.

#include "cpu/pack.h"

#if defined(__x86_64__)

// GCC's own _mm512_undefined_epi32() trips these warnings (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstring>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")

#include "cpu/transpose_avx512.h"

namespace daq_mm::cpu {
namespace {

DAQ_MM_INLINE void store(const PackTask& task, int64_t vector, int64_t place, int64_t step,
                         __m512i v) {
  _mm512_store_si512(task.out + place * task.place_stride + (step * task.vectors + vector) * 64, v);
  if (task.sums != nullptr) {
    int32_t* at = task.sums + (place * task.vectors + vector) * 16;
    const __m512i sum = _mm512_loadu_si512(at);
    _mm512_storeu_si512(at, _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), v));
  }
}

// The first n bytes of a mask, n clamped to 0..64.
DAQ_MM_INLINE __mmask64 first_bytes(int64_t n) {
  return n <= 0 ? 0 : n >= 64 ? ~0ull : (1ull << n) - 1;
}

// 16 bytes of each of 4 rows, byte b of the result's word i being row b's byte i.
DAQ_MM_INLINE __m512i four_rows(const int8_t* at, int64_t row_stride, int64_t rows, int64_t n,
                                __m512i interleave) {
  const __mmask16 m = static_cast<__mmask16>(first_bytes(n < 16 ? n : 16));
  const __m128i a = _mm_maskz_loadu_epi8(m, at);
  const __m128i b = _mm_maskz_loadu_epi8(rows > 1 ? m : 0, at + row_stride);
  const __m128i c = _mm_maskz_loadu_epi8(rows > 2 ? m : 0, at + 2 * row_stride);
  const __m128i d = _mm_maskz_loadu_epi8(rows > 3 ? m : 0, at + 3 * row_stride);
  __m512i v = _mm512_castsi128_si512(a);
  v = _mm512_inserti32x4(v, b, 1);
  v = _mm512_inserti32x4(v, c, 2);
  v = _mm512_inserti32x4(v, d, 3);
  return _mm512_permutexvar_epi8(interleave, v);
}

__m512i interleave_four() {
  alignas(64) uint8_t index[64];
  for (int i = 0; i < 64; ++i) index[i] = static_cast<uint8_t>(16 * (i % 4) + i / 4);
  return _mm512_load_si512(index);
}

// Lanes adjacent (grad-input of 1x1 or of a channels-last weight): they are the slots, no transpose
// needed.
void pack_adjacent_lanes(const PackTask& task) {
  const __m512i interleave = interleave_four();
  for (int64_t tap = 0; tap < task.taps; ++tap) {
    const int8_t* data = task.data + tap * task.tap_stride;
    for (int64_t k = 0; k < task.depth; k += 4) {
      for (int64_t v = 0; v < task.vectors; ++v) {
        store(task, v, task.place[tap], k / 4,
              four_rows(data + k * task.depth_stride + 16 * v, task.depth_stride, task.depth - k,
                        task.lanes - 16 * v, interleave));
      }
    }
  }
}

// Depth adjacent (forward of 1x1 or of a channels-last weight): 16 steps of a tap at a time.
void pack_adjacent_steps(const PackTask& task) {
  const int64_t steps = (task.depth + 3) / 4;
  for (int64_t tap = 0; tap < task.taps; ++tap) {
    for (int64_t step = 0; step < steps; step += 16) {
      const __mmask64 mask = first_bytes(task.depth - step * 4);
      for (int64_t v = 0; v < task.vectors; ++v) {
        const int8_t* data =
            task.data + 16 * v * task.lane_stride + tap * task.tap_stride + step * 4;
        __m512i r[16];
#pragma GCC unroll 16
        for (int lane = 0; lane < 16; ++lane) {
          r[lane] = _mm512_maskz_loadu_epi8(16 * v + lane < task.lanes ? mask : 0,
                                            data + lane * task.lane_stride);
        }
        transpose_words(r);
#pragma GCC unroll 16
        for (int slot = 0; slot < 16; ++slot) {
          if (step + slot < steps) store(task, v, task.place[tap], step + slot, r[slot]);
        }
      }
    }
  }
}

// Depth and taps adjacent (forward of a contiguous weight), at most 16 taps: a register holds
// 16 / taps steps.
void pack_adjacent_depth(const PackTask& task) {
  const int64_t taps = task.taps;
  const int64_t steps_each = 16 / taps;
  alignas(64) uint8_t index[64] = {};
  for (int64_t slot = 0; slot < steps_each * taps; ++slot) {
    for (int64_t b = 0; b < 4; ++b) {
      index[slot * 4 + b] = static_cast<uint8_t>((slot / taps * 4 + b) * taps + slot % taps);
    }
  }
  const __m512i permutation = _mm512_load_si512(index);
  const int64_t steps = (task.depth + 3) / 4;
  for (int64_t step = 0; step < steps; step += steps_each) {
    const int64_t at = step * 4 * taps;
    const __mmask64 mask = first_bytes(task.depth * taps - at);
    for (int64_t v = 0; v < task.vectors; ++v) {
      __m512i r[16];
#pragma GCC unroll 16
      for (int lane = 0; lane < 16; ++lane) {
        const __m512i bytes =
            _mm512_maskz_loadu_epi8(16 * v + lane < task.lanes ? mask : 0,
                                    task.data + (16 * v + lane) * task.lane_stride + at);
        r[lane] = _mm512_permutexvar_epi8(permutation, bytes);
      }
      transpose_words(r);
      const int64_t here = steps - step < steps_each ? steps - step : steps_each;
      alignas(64) int32_t slots[16][16];
#pragma GCC unroll 16
      for (int slot = 0; slot < 16; ++slot) _mm512_store_si512(slots[slot], r[slot]);
      for (int64_t s = 0; s < here; ++s) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          store(task, v, task.place[tap], step + s, _mm512_load_si512(slots[s * taps + tap]));
        }
      }
    }
  }
}

// Taps adjacent, any other strides: 16 taps of 4 depths at a time.
void pack_any(const PackTask& task) {
  const __m512i interleave = interleave_four();
  for (int64_t tap = 0; tap < task.taps; tap += 16) {
    for (int64_t k = 0; k < task.depth; k += 4) {
      for (int64_t v = 0; v < task.vectors; ++v) {
        __m512i r[16];
#pragma GCC unroll 16
        for (int lane = 0; lane < 16; ++lane) {
          const int8_t* at =
              task.data + (16 * v + lane) * task.lane_stride + k * task.depth_stride + tap;
          r[lane] = four_rows(at, task.depth_stride, task.depth - k,
                              16 * v + lane < task.lanes ? task.taps - tap : 0, interleave);
        }
        transpose_words(r);
        alignas(64) int32_t slots[16][16];
#pragma GCC unroll 16
        for (int slot = 0; slot < 16; ++slot) _mm512_store_si512(slots[slot], r[slot]);
        const int64_t here = task.taps - tap < 16 ? task.taps - tap : 16;
        for (int64_t t = 0; t < here; ++t) {
          store(task, v, task.place[tap + t], k / 4, _mm512_load_si512(slots[t]));
        }
      }
    }
  }
}

}  // namespace

void pack_panel_avx512(const PackTask& task) {
  if (task.sums != nullptr) {
    std::memset(task.sums, 0, sizeof(int32_t) * 16 * task.vectors * task.taps);
  }
  const bool taps_are_apart = task.taps == 1 || task.tap_stride != 1;
  if (task.lane_stride == 1 && taps_are_apart) {
    pack_adjacent_lanes(task);
  } else if (task.depth_stride == 1 && taps_are_apart) {
    pack_adjacent_steps(task);
  } else if (task.depth_stride == task.taps && task.taps <= 16) {
    pack_adjacent_depth(task);
  } else {
    pack_any(task);
  }
}

}  // namespace daq_mm::cpu

#pragma GCC pop_options

#endif  // __x86_64__
