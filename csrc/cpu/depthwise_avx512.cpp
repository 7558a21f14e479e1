// AVX512-VNNI kernels of depthwise.h, for the ops forward and grad_input.
//
// Four rows of 64 channels are interleaved to 4 bytes a channel, which vpdpbusd multiplies by the
// four taps' weights; results are put back into channel order before they are stored. Where a block
// has at most 32 channels, two pixels share a vector.

#include "cpu/depthwise.h"

#if defined(__x86_64__)

// GCC's own _mm512_undefined_ps() trips these warnings (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,prfchw")

#include "cpu/finish_avx512.h"

namespace daq_mm::cpu {
namespace {

// Four rows' bytes, interleaved: vector v holds channels 16 L + 4 v + j in lane 4 L + j.
struct Quad {
  __m512i v0, v1, v2, v3;
};

struct Loader {
  __mmask64 mask;  // channels of the block
  __m512i sign;    // 0x80 in each byte for signed rows, or 0
  int64_t offset;

  DAQ_MM_INLINE __m512i row(const uint8_t* at) const {
    return _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, at + offset), sign);
  }
};

DAQ_MM_INLINE Quad interleave(__m512i r0, __m512i r1, __m512i r2, __m512i r3) {
  const __m512i a = _mm512_unpacklo_epi8(r0, r1);
  const __m512i b = _mm512_unpackhi_epi8(r0, r1);
  const __m512i c = _mm512_unpacklo_epi8(r2, r3);
  const __m512i d = _mm512_unpackhi_epi8(r2, r3);
  return {_mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c), _mm512_unpacklo_epi16(b, d),
          _mm512_unpackhi_epi16(b, d)};
}

DAQ_MM_INLINE void multiply(Quad& sums, const Quad& rows, const uint8_t* weights) {
  multiply_add(sums.v0, rows.v0, _mm512_load_si512(weights));
  multiply_add(sums.v1, rows.v1, _mm512_load_si512(weights + 64));
  multiply_add(sums.v2, rows.v2, _mm512_load_si512(weights + 128));
  multiply_add(sums.v3, rows.v3, _mm512_load_si512(weights + 192));
}

// Exchanges 128-bit lane L of vector v with lane v of vector L: to channel order and back.
DAQ_MM_INLINE Quad reorder(const Quad& q) {
  const __m512i a = _mm512_shuffle_i32x4(q.v0, q.v1, 0x44);
  const __m512i b = _mm512_shuffle_i32x4(q.v0, q.v1, 0xee);
  const __m512i c = _mm512_shuffle_i32x4(q.v2, q.v3, 0x44);
  const __m512i d = _mm512_shuffle_i32x4(q.v2, q.v3, 0xee);
  return {_mm512_shuffle_i32x4(a, c, 0x88), _mm512_shuffle_i32x4(a, c, 0xdd),
          _mm512_shuffle_i32x4(b, d, 0x88), _mm512_shuffle_i32x4(b, d, 0xdd)};
}

template <OutKind kOut, bool kBias>
DAQ_MM_INLINE void store_block(const Quad& channels, const BlockTask& task, int64_t pixel) {
  uint8_t* out = task.out + task.out_at[pixel];
  constexpr int64_t kStep = kVector * kElementSize<kOut>;
  const __m512 y0 = finish<kOut>(channels.v0, load_column<kOut, kBias>(task.finish, 0));
  const __m512 y1 = finish<kOut>(channels.v1, load_column<kOut, kBias>(task.finish, 16));
  const __m512 y2 = finish<kOut>(channels.v2, load_column<kOut, kBias>(task.finish, 32));
  const __m512 y3 = finish<kOut>(channels.v3, load_column<kOut, kBias>(task.finish, 48));
  if (task.lanes == kDepthwiseLanes) {
    store<kOut>(y0, out);
    store<kOut>(y1, out + kStep);
    store<kOut>(y2, out + 2 * kStep);
    store<kOut>(y3, out + 3 * kStep);
  } else {
    store_some<kOut>(y0, out, first_lanes(task.lanes));
    store_some<kOut>(y1, out + kStep, first_lanes(task.lanes - 16));
    store_some<kOut>(y2, out + 2 * kStep, first_lanes(task.lanes - 32));
    store_some<kOut>(y3, out + 3 * kStep, first_lanes(task.lanes - 48));
  }
}

DAQ_MM_INLINE Quad starting_sums(const BlockTask& task) {
  return reorder({minus(task.finish.offset), minus(task.finish.offset + 16),
                  minus(task.finish.offset + 32), minus(task.finish.offset + 48)});
}

DAQ_MM_INLINE Loader make_loader(const BlockTask& task, bool is_signed) {
  return {task.lanes >= 64 ? ~0ull : (1ull << task.lanes) - 1,
          _mm512_set1_epi8(is_signed ? static_cast<char>(0x80) : 0), task.channel_offset};
}

constexpr int64_t kAhead = 16;  // pixels between a prefetch and its use

// Any taps, four at a time.
template <OutKind kOut, bool kSigned, bool kBias>
DAQ_MM_INLINE void run_any(const BlockTask& task) {
  const Loader load = make_loader(task, kSigned);
  const Quad start = starting_sums(task);
  for (int64_t p = 0; p < task.pixels; ++p) {
    Quad sums = start;
    const uint8_t* weights = task.panel;
    for (int64_t t = 0; t < task.taps; t += 4, weights += 256) {
      const uint8_t* const* rows = task.rows + t * task.row_stride + p;
      const int64_t left = task.taps - t;
      const __m512i zero = _mm512_setzero_si512();
      const __m512i r0 = load.row(rows[0]);
      const __m512i r1 = left > 1 ? load.row(rows[task.row_stride]) : zero;
      const __m512i r2 = left > 2 ? load.row(rows[2 * task.row_stride]) : zero;
      const __m512i r3 = left > 3 ? load.row(rows[3 * task.row_stride]) : zero;
      multiply(sums, interleave(r0, r1, r2, r3), weights);
    }
    store_block<kOut, kBias>(reorder(sums), task, p);
  }
}

// The rows of one column of a 3 x 3 kernel; a column that two pixels share is interleaved once.
struct ColumnRows {
  const uint8_t* top;
  const uint8_t* middle;
  const uint8_t* bottom;
  bool operator==(const ColumnRows& o) const {
    return top == o.top && middle == o.middle && bottom == o.bottom;
  }
};

template <OutKind kOut, bool kSigned, bool kBias>
DAQ_MM_INLINE void run_nine(const BlockTask& task) {
  const Loader load = make_loader(task, kSigned);
  const Quad start = starting_sums(task);
  const int64_t stride = task.row_stride;
  ColumnRows at1{nullptr, nullptr, nullptr};
  ColumnRows at2 = at1;
  Quad left{}, centre{}, right{};
  const auto column_of = [&](int64_t p, int64_t t) __attribute__((always_inline)) {
    const uint8_t* const* rows = task.rows + t * stride + p;
    return ColumnRows{rows[0], rows[3 * stride], rows[6 * stride]};
  };
  const auto read = [&](const ColumnRows& c) __attribute__((always_inline)) {
    return interleave(load.row(c.top), load.row(c.middle), load.row(c.bottom),
                      _mm512_setzero_si512());
  };
  for (int64_t p = 0; p < task.pixels; ++p) {
    const ColumnRows c0 = column_of(p, 0);
    const ColumnRows c1 = column_of(p, 1);
    const ColumnRows c2 = column_of(p, 2);
    if (c0 == at1 && c1 == at2) {  // one position further: unit stride
      left = centre;
      centre = right;
    } else {
      left = c0 == at2 ? right : read(c0);  // two positions further: stride 2
      centre = read(c1);
    }
    right = read(c2);
    at1 = c1;
    at2 = c2;
    // The last tap's row is the one that nothing has read yet.
    if (p + kAhead < task.pixels) {
      __builtin_prefetch(task.rows[8 * stride + p + kAhead] + task.channel_offset, 0, 3);
      __builtin_prefetch(task.out + task.out_at[p + kAhead], 1, 3);
    }
    Quad sums = start;
    multiply(sums, left, task.panel);
    multiply(sums, centre, task.panel + 256);
    multiply(sums, right, task.panel + 512);
    store_block<kOut, kBias>(reorder(sums), task, p);
  }
}

// Two pixels of at most 32 channels: the second one's are the vector's upper half.
struct PairLoader {
  __mmask32 mask;
  __m512i sign;
  int64_t offset;

  DAQ_MM_INLINE __m512i row(const uint8_t* first, const uint8_t* second) const {
    const __m256i low = _mm256_maskz_loadu_epi8(mask, first + offset);
    const __m256i high = _mm256_maskz_loadu_epi8(mask, second + offset);
    return _mm512_xor_si512(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), sign);
  }
};

template <OutKind kOut, bool kBias>
DAQ_MM_INLINE void store_pair(const Quad& channels, const BlockTask& task, int64_t pixel) {
  constexpr int64_t kStep = kVector * kElementSize<kOut>;
  const auto low = load_column<kOut, kBias>(task.finish, 0);
  const auto high = load_column<kOut, kBias>(task.finish, 16);
  const __mmask16 some_low = first_lanes(task.lanes), some_high = first_lanes(task.lanes - 16);
  uint8_t* out = task.out + task.out_at[pixel];
  store_some<kOut>(finish<kOut>(channels.v0, low), out, some_low);
  store_some<kOut>(finish<kOut>(channels.v1, high), out + kStep, some_high);
  if (pixel + 1 == task.pixels) return;
  out = task.out + task.out_at[pixel + 1];
  store_some<kOut>(finish<kOut>(channels.v2, low), out, some_low);
  store_some<kOut>(finish<kOut>(channels.v3, high), out + kStep, some_high);
}

// run_nine for at most 32 channels. Rows are listed beyond the last pixel, so its partner exists.
template <OutKind kOut, bool kSigned, bool kBias>
DAQ_MM_INLINE void run_nine_in_pairs(const BlockTask& task) {
  const PairLoader load{task.lanes >= 32 ? ~0u : (1u << task.lanes) - 1,
                        _mm512_set1_epi8(kSigned ? static_cast<char>(0x80) : 0),
                        task.channel_offset};
  const __m512i offset0 = minus(task.finish.offset), offset1 = minus(task.finish.offset + 16);
  const Quad start = reorder({offset0, offset1, offset0, offset1});
  const int64_t stride = task.row_stride;
  const auto column_of = [&](int64_t p, int64_t t) __attribute__((always_inline)) {
    const uint8_t* const* rows = task.rows + t * stride + p;
    return ColumnRows{rows[0], rows[3 * stride], rows[6 * stride]};
  };
  const auto read = [&](const ColumnRows& a, const ColumnRows& b) __attribute__((always_inline)) {
    return interleave(load.row(a.top, b.top), load.row(a.middle, b.middle),
                      load.row(a.bottom, b.bottom), _mm512_setzero_si512());
  };
  ColumnRows at0{nullptr, nullptr, nullptr}, at1 = at0;  // of `right`
  Quad right{};
  for (int64_t p = 0; p < task.pixels; p += 2) {
    const ColumnRows a0 = column_of(p, 0), b0 = column_of(p + 1, 0);
    const Quad left = a0 == at0 && b0 == at1 ? right : read(a0, b0);  // unit stride
    const Quad centre = read(column_of(p, 1), column_of(p + 1, 1));
    at0 = column_of(p, 2);
    at1 = column_of(p + 1, 2);
    right = read(at0, at1);
    if (p + kAhead + 1 < task.pixels) {
      __builtin_prefetch(task.rows[8 * stride + p + kAhead] + task.channel_offset, 0, 3);
      __builtin_prefetch(task.out + task.out_at[p + kAhead], 1, 3);
      __builtin_prefetch(task.out + task.out_at[p + kAhead + 1], 1, 3);
    }
    Quad sums = start;
    multiply(sums, left, task.panel);
    multiply(sums, centre, task.panel + 256);
    multiply(sums, right, task.panel + 512);
    store_pair<kOut, kBias>(reorder(sums), task, p);
  }
}

template <OutKind kOut, bool kSigned>
void run_block(const BlockTask& task) {
  if (task.finish.bias != nullptr) {
    run_any<kOut, kSigned, true>(task);
  } else {
    run_any<kOut, kSigned, false>(task);
  }
}

template <OutKind kOut, bool kSigned>
void run_block_of_nine(const BlockTask& task) {
  const bool pairs = task.lanes <= kDepthwiseLanes / 2;
  if (task.finish.bias != nullptr) {
    pairs ? run_nine_in_pairs<kOut, kSigned, true>(task) : run_nine<kOut, kSigned, true>(task);
  } else {
    pairs ? run_nine_in_pairs<kOut, kSigned, false>(task) : run_nine<kOut, kSigned, false>(task);
  }
}

template <OutKind kOut>
BlockKernel choose(int64_t taps, bool is_signed) {
  if (taps == 9) return is_signed ? run_block_of_nine<kOut, true> : run_block_of_nine<kOut, false>;
  return is_signed ? run_block<kOut, true> : run_block<kOut, false>;
}

}  // namespace

BlockKernel depthwise_kernel_avx512(int64_t taps, OutKind out, bool is_signed) {
  switch (out) {
    case OutKind::kFloat:
      return choose<OutKind::kFloat>(taps, is_signed);
    case OutKind::kBFloat16:
      return choose<OutKind::kBFloat16>(taps, is_signed);
    case OutKind::kBFloat16Native:
      return choose<OutKind::kBFloat16Native>(taps, is_signed);
    case OutKind::kHalf:
      return choose<OutKind::kHalf>(taps, is_signed);
    default:
      return choose<OutKind::kInt32>(taps, is_signed);
  }
}

}  // namespace daq_mm::cpu

#pragma GCC pop_options

#endif  // __x86_64__
