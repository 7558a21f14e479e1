// The inner kernels of forward and grad-input: a block of pixels times a panel of packed weights.
//
//   out[p][n] = finish(sum over taps t and channels k of rows[t][p][k] * panel[t][k][n])
//   finish(s) = float(s - offset[n]) * scale[n] + bias[n], each operation rounded on its own
//
// There is no im2col: a kernel reads each pixel's channels through a pointer per pixel and tap.
// Two layouts exist:
//   bytes  rows are 8-bit, panel is int8 [tap][K / 4][lanes][4] (vpdpbusd; AVX512-VNNI)
//   words  rows are int16 with the zero point taken off, panel is int16 [tap][K / 2][lanes][2]
//          (vpmaddwd is exact where vpmaddubsw would saturate; AVX2 and scalar)
// K is padded with zero weights to whole steps, so what a row holds beyond K does not matter.
#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace daq_mm::cpu {

constexpr int64_t kVector = 16;      // lanes (output channels) of one vector of sums
constexpr int64_t kMaxVectors = 4;   // vectors of a panel at most
constexpr int64_t kRowPadding = 24;  // kernels read row pointers up to a multiple of this

enum class OutKind {
  kFloat,
  kBFloat16,
  kBFloat16Native,  // vcvtne2ps2bf16; equal only where no value is subnormal or NaN
  kHalf,
  kInt32,  // sums minus offset; scale and bias are not read
};
constexpr int kOutKinds = 5;

// How to turn the sums of one panel into results. Arrays hold `vectors * kVector` entries.
struct Finish {
  const int32_t* offset;
  const float* scale;
  const float* bias;  // or null
};

// Where a kernel adds up its results as stored: `vectors * kVector` entries each. Extremes are those
// of the sums, of which results are a monotone function.
struct LaneStats {
  double* sum;
  double* squares;
  int32_t* least;
  int32_t* most;
};

struct BlockTask {
  const uint8_t* const* rows;  // rows[t * row_stride + p]
  int64_t row_stride;          // a multiple of kRowPadding, at least `pixels`
  int64_t pixels;
  int64_t taps;
  int64_t channel_offset;  // bytes added to every row pointer: the group's first channel
  int64_t steps;           // steps of 4 (bytes) or 2 (words) channels a tap
  const uint8_t* panel;
  int64_t tap_stride;  // bytes from a tap's part of the panel to the next tap's
  int64_t lanes;       // results wanted, at most vectors * kVector
  Finish finish;
  uint8_t* out;           // of the panel's first lane
  const int64_t* out_at;  // bytes from `out` to pixel p's results
  // Hints, which only the AVX512 kernels take. streaming: store past the caches; needs 4-byte
  // results, whole vectors of lanes and 64-byte alignment of each.
  bool streaming = false;
  bool prefetch_results = false;  // fetch the lines that the next tile writes
  bool rows_are_cold = false;  // one tap, and these rows have not been read before
  // Only for AVX512 kernels of unsigned rows and float results; or null.
  const LaneStats* stats = nullptr;
};

using BlockKernel = void (*)(const BlockTask&);

// True if rows and panels are in the bytes layout under this capability, else words.
inline bool uses_bytes(Capability c) { return c == Capability::kAVX512VNNI; }

// Vectors a panel may have under this capability.
inline int64_t max_vectors(Capability c) { return uses_bytes(c) ? kMaxVectors : 1; }

// Kernels by instruction set. `is_signed`: rows are int8 and count as value + 128 (bytes layout).
BlockKernel block_kernel_avx512(int64_t vectors, OutKind out, bool is_signed);
BlockKernel block_kernel_avx2(OutKind out);
BlockKernel block_kernel_scalar(OutKind out);

inline BlockKernel block_kernel(Capability c, int64_t vectors, OutKind out, bool is_signed) {
  switch (c) {
#if defined(__x86_64__)
    case Capability::kAVX512VNNI:
      return block_kernel_avx512(vectors, out, is_signed);
    case Capability::kAVX2:
      return block_kernel_avx2(out);
#endif
    default:
      return block_kernel_scalar(out);
  }
}

}  // namespace daq_mm::cpu
