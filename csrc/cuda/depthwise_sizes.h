// How the depthwise kernels share out their work, for them and for the plan. A thread takes pieces
// of four channels and runs of four positions along W: one register holds a byte of each of the
// four, and one dot product of bytes is four terms.
#pragma once

#include "cuda/conv_sizes.h"

namespace daq_mm::cuda {

constexpr int kDepthwiseThreads = 256;
constexpr int kPiece = 4;  // channels
constexpr int kRun = 4;    // positions along W

// Taps that a thread of grad-weight sums for: so many rows of the kernel, so many taps of each.
constexpr int kTapRows = 3;
constexpr int kTapsAcross = 3;
constexpr int kGradWeightResident = 2;  // blocks a processor

// A block has `across` neighbouring pieces, and `down` runs at a time; threads beyond idle.
struct DepthwiseTiles {
  int across;
  int down;
  int64_t tiles;  // that cover the channels

  // Tiles of equal size, so that the last one does not idle.
  static DepthwiseTiles of(int64_t channels, int most_across = 64) {
    const int64_t pieces = ceil_div(channels, int64_t{kPiece});
    DepthwiseTiles t;
    t.tiles = ceil_div(pieces, int64_t{most_across});
    t.across = static_cast<int>(ceil_div(pieces, t.tiles));
    t.down = kDepthwiseThreads / t.across;
    return t;
  }
};

// Runs of forward's results, over which grad-weight sums. A line's last one may be shorter.
DAQ_BOTH inline int64_t runs_of_results(const ConvSizes& s) {
  return s.n * s.out[0] * s.out[1] * ceil_div(s.out[2], kRun);
}

// Blocks that grad-weight has along the kernel's rows (d, h), and along W.
DAQ_BOTH inline int64_t tap_row_blocks(const ConvSizes& s) {
  return ceil_div(int64_t{1} * s.kernel[0] * s.kernel[1], int64_t{kTapRows});
}
DAQ_BOTH inline int64_t tap_blocks(const ConvSizes& s) {
  return tap_row_blocks(s) * ceil_div(s.kernel[2], kTapsAcross);
}

}  // namespace daq_mm::cuda
