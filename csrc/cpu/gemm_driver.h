// The loop around the kernels of gemm_tiles.h, shared by forward and grad-input: rows of pixels,
// blocks of pixels for the threads, and where results go.
//
// Both products are sums over taps of a source pixel times a weight matrix:
//   source position = output index * multiplier + shift[tap]          (each spatial axis)
//   output position = out_start + output index * out_step
// forward is one phase (multiplier = stride); grad-input has one phase for each residue of the
// input position modulo the stride, and a phase has only the taps that meet it.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "cpu/capability.h"
#include "cpu/gemm_tiles.h"
#include "cpu/pack.h"

namespace daq_mm::cpu {

using Spatial = std::array<int64_t, 3>;

// 8-bit (or widened) channels-last pixels.
struct RowSource {
  at::Tensor owner;       // keeps `data` alive where it is a copy
  const uint8_t* data = nullptr;
  int64_t n = 0;
  Spatial size{1, 1, 1};
  int64_t pixel_bytes = 0;
  std::vector<uint8_t> pad_row;   // what padding reads: the zero point
  std::vector<uint8_t> last_row;  // the last pixel with room behind it, where steps read past it
};

struct SourceOptions {
  bool is_signed = false;    // q is int8
  int32_t zero_point = 0;    // what padding holds; the words layout takes it off each value
  bool merge_width = false;  // pad W in a copy, so that a kernel row's values lie side by side
  int64_t pad_begin = 0;     // of W, with merge_width
  int64_t pad_end = 0;
  int64_t row_bytes = 0;  // bytes that all steps of a tap read, from the start of a pixel
};

// Bytes from the start of a pixel that the last group's steps read; with one tap's depth larger
// than `channels` (merged rows) also right.
inline int64_t row_bytes(const PackedWeights& w, int64_t groups, int64_t channels) {
  return ((groups - 1) * channels + w.steps * w.step_channels) * w.element;
}

// q (N, C, *spatial), channels-last, as rows that kernels of this capability can read: q itself
// where they can, else a copy.
RowSource make_source(const at::Tensor& q, Capability capability, const SourceOptions& options);

struct Phase {
  Spatial count{1, 1, 1};  // output positions of this phase
  Spatial out_start{0, 0, 0};
  Spatial out_step{1, 1, 1};
  Spatial multiplier{1, 1, 1};
  std::vector<Spatial> shifts;  // one a tap, in the order of packing
  int64_t first_tap = 0;        // place in the panels
  int64_t pixels(int64_t n) const { return n * count[0] * count[1] * count[2]; }
};

struct GemmProblem {
  RowSource source;
  std::vector<Phase> phases;
  PackedWeights weights;
  bool is_signed = false;   // rows are int8 (bytes layout)
  bool depthwise = false;   // weights are packed by pack_depthwise
  int64_t zero_point = 0;   // that kernels see in rows: 128 for signed ones; 0 in words
  int64_t depth = 0;        // channels of a group a tap
  int64_t group_channels = 0;  // channels from one group's first to the next one's in a row
  std::vector<float> scale;    // one a lane of all groups, or a single one
  std::vector<float> bias;     // one a lane of all groups, or empty
};

// What to do with results as soon as they are stored, while they are in a core's caches.
struct BlockEpilogue {
  virtual ~BlockEpilogue() = default;
  // Before all results, with the number of parts that the pixels are cut into. Parts do not depend
  // on the number of threads.
  virtual void start(const at::Tensor& out, int64_t parts) = 0;
  // Channels [first_channel, last_channel) of pixels [first, last), in memory's order, are stored.
  // Called once for each of them, by several threads; never for the same part and channels at once.
  virtual void apply(int64_t part, int64_t first, int64_t last, int64_t first_channel,
                     int64_t last_channel) = 0;
};

// `out` is (N, groups * lanes, *spatial), channels-last or contiguous; every value is written. `stats`
// are those of stats_of for `out`, float64 (4, C), or null. `epilogue` must be one that can be taken.
void run_gemm(const GemmProblem& problem, Capability capability, at::Tensor& out,
              double* stats = nullptr, BlockEpilogue* epilogue = nullptr);

// Whether run_gemm can take statistics while it computes.
bool takes_stats(const GemmProblem& problem, Capability capability, const at::Tensor& out);

// Whether run_gemm can call an epilogue: its blocks are of consecutive pixels, and of whole vectors of
// channels or up to the last one.
bool takes_epilogue(const GemmProblem& problem, const at::Tensor& out);

}  // namespace daq_mm::cpu
