// What grad-weight's two kinds of tiles share, mma.sync's (conv_grad_weight.cu) and wgmma's
// (conv_grad_weight_wgmma.cu): copies of both operands' rows as they lie, four positions of a channel
// in a register, and where sums go.
//
// A transposed matrix load of 16-bit values gives a lane two positions of two neighbouring channels;
// two such registers and one byte permutation make four positions of one channel. The order of
// positions within 32 is permuted by this, for both operands alike, and rows and columns of a
// fragment are neighbouring channels: row g of 16 is channel 2 g, row g + 8 is channel 2 g + 1.
#pragma once

#include <type_traits>

#include "cuda/conv_result.h"
#include "cuda/conv_sizes.h"
#include "cuda/conv_tile.h"

namespace daq_mm::cuda {

// How activations move when a walk over output positions goes kStep further, in input coordinates
// and bytes: known to the host, so that a thread only adds and compares.
struct ActivationWalk {
  int step[3];      // of the coordinates D, H, W
  int period[3];    // what is taken off a coordinate that runs over, ...
  int carry[3];     // ... what is added to the one before it,
  int64_t wrap[3];  // and to the address for both
  int64_t delta;    // of the address, without any of this

  static ActivationWalk of(const ConvSizes& s) {
    // Bytes of an image, and of a place in D, H, W.
    const int64_t line = int64_t{1} * s.in[2] * s.ci, plane = s.in[1] * line;
    const int64_t bytes[4] = {s.in[0] * plane, plane, line, s.ci};
    const auto stride = [&](int axis) { return s.out[axis] == 1 ? 1 : s.stride[axis]; };
    ActivationWalk walk;
    walk.delta = 0;
    int rest = kStep;
    for (int a = 2; a >= 0; --a) {
      walk.step[a] = rest % s.out[a] * stride(a);
      walk.period[a] = s.out[a] * stride(a);
      walk.carry[a] = a == 0 ? 0 : stride(a - 1);
      walk.wrap[a] = (a == 0 ? 1 : stride(a - 1)) * bytes[a] - walk.period[a] * bytes[a + 1];
      walk.delta += walk.step[a] * bytes[a + 1];
      rest /= s.out[a];
    }
    walk.delta += rest * bytes[0];
    return walk;
  }
};

struct GradWeightProblem {
  ConvSizes sizes;
  ActivationWalk walk;
  int64_t columns;               // taps * Ci / groups, of a group
  int64_t splits;
  int split_steps;
  Global<const uint8_t> q_x;
  Global<const uint8_t> q_g;
  Global<const uint8_t> pads;    // 16 times the zero point, 16 zeros
  Global<const float> qparams;
  Global<int32_t> partial;       // [split][co][columns]
  Global<int32_t> sums;          // [split][co], written if the zero point is not 0
};

// Copies 64 positions of a block's rows of gradients: [position][rows bytes].
template <typename tile_t, bool whole_chunks>
class GradientRows {
 public:
  static constexpr int kWidth = tile_t::kRows;
  static constexpr int kAcross = kWidth / kChunk;
  static constexpr int kRowsAPass = tile_t::kThreads / kAcross;

  DAQ_DEVICE GradientRows(const GradWeightProblem& problem, int64_t first_row, int64_t group,
                          int step)
      : a_(problem) {
    const int64_t in_group = first_row + thread_index() % kAcross * kChunk;
    const int64_t position = int64_t{1} * step * kStep + thread_index() / kAcross;
    available_ = static_cast<int>(a_.sizes.co_per_group() - in_group);
    at_ = position * a_.sizes.co + group * a_.sizes.co_per_group() + in_group;
    left_ = a_.sizes.n * a_.sizes.out_positions() - position;
    if (available_ <= 0) left_ = 0;
  }

  // Starts the copies of the next step.
  DAQ_DEVICE void load(const Shared<uint8_t>& stage) {
    const int chunk = thread_index() % kAcross;
#pragma unroll
    for (int i = 0; i < kStep / kRowsAPass; ++i) {
      const int row = thread_index() / kAcross + i * kRowsAPass;
      const bool inside = i * kRowsAPass < left_;
      const int to = swizzled<kWidth>(row, chunk);
      const int64_t at = at_ + i * kRowsAPass * a_.sizes.co;
      if constexpr (whole_chunks) {
        copy16_async(stage, to, inside ? a_.q_g : a_.pads, inside ? at : kChunk);
      } else {
        stage.store_as(to, inside ? gathered(at) : Bytes16{});
      }
    }
    at_ += kStep * a_.sizes.co;
    left_ -= kStep;
  }

 private:
  DAQ_DEVICE Bytes16 gathered(int64_t at) const {
    Bytes16 chunk = {};
#pragma unroll 1
    for (int word = 0; word < 4; ++word) {
      uint32_t bits = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const int place = word * 4 + b;
        if (place < available_) bits |= static_cast<uint32_t>(a_.q_g.load(at + place)) << (b * 8);
      }
      chunk = {{chunk.word[1], chunk.word[2], chunk.word[3], bits}};
    }
    return chunk;
  }

  const GradWeightProblem& a_;
  int64_t at_;        // of the thread's chunk in the next step's first row
  int64_t left_;      // positions from there on; none for channels beyond the group
  int available_;     // channels of the group from the chunk on
};

// A thread's 16 columns of activations; column tap * Ci / groups + channel.
struct ActivationPlace {
  int tap[3];
  int channel;  // of all groups

  static DAQ_DEVICE ActivationPlace of(const ConvSizes& s, int64_t column, int64_t group) {
    const int per_group = static_cast<int>(s.ci_per_group());
    const int tap = static_cast<int>(column / per_group);
    return {{tap / s.kernel[2] / s.kernel[1], tap / s.kernel[2] % s.kernel[1], tap % s.kernel[2]},
            static_cast<int>(group) * per_group + static_cast<int>(column % per_group)};
  }
};

// Copies 64 positions of a block's columns of activations, [position][columns bytes], where channels
// come in whole chunks of 16. axes: 2 if D is 1 everywhere.
template <typename tile_t, int axes>
class ActivationChunks {
 public:
  static constexpr int kWidth = tile_t::kColumns;
  static constexpr int kAcross = kWidth / kChunk;
  static constexpr int kRowsAPass = tile_t::kThreads / kAcross;
  static constexpr int kRows = kStep / kRowsAPass;

  DAQ_DEVICE ActivationChunks(const GradWeightProblem& problem, int64_t first_column,
                              int64_t group, int step)
      : a_(problem) {
    const ConvSizes& s = a_.sizes;
    const int64_t position = int64_t{1} * step * kStep + thread_index() / kAcross;
    left_ = s.n * s.out_positions() - position;
    const int64_t column = first_column + thread_index() % kAcross * kChunk;
    if (column >= a_.columns) left_ = 0;
    const auto place = ActivationPlace::of(s, column, group);
    int shift[3];
#pragma unroll
    for (int axis = 3 - axes; axis < 3; ++axis) {
      shift[axis] = place.tap[axis] * s.dilation[axis] - s.pad[axis];
      limit_[axis] = a_.walk.period[axis] + shift[axis];
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const auto p = GridPosition::of(position + i * kRowsAPass, s.out);
      at_[i] = p.image;
#pragma unroll
      for (int axis = 3 - axes; axis < 3; ++axis) {
        in_[i][axis] = p.at[axis] * s.stride[axis] + shift[axis];
        at_[i] = at_[i] * s.in[axis] + in_[i][axis];
      }
      at_[i] = at_[i] * s.ci + place.channel;
    }
  }

  // Starts the copies of the next step.
  DAQ_DEVICE void load(const Shared<uint8_t>& stage) {
    const int chunk = thread_index() % kAcross;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = thread_index() / kAcross + i * kRowsAPass;
      bool inside = i * kRowsAPass < left_;
#pragma unroll
      for (int axis = 3 - axes; axis < 3; ++axis) {
        inside = inside && static_cast<unsigned>(in_[i][axis]) <
                               static_cast<unsigned>(a_.sizes.in[axis]);
      }
      copy16_async(stage, swizzled<kWidth>(row, chunk), inside ? a_.q_x : a_.pads,
                   inside ? at_[i] : 0);
      advance(i);
    }
    left_ -= kStep;
  }

 private:
  DAQ_DEVICE void advance(int i) {
    const ActivationWalk& walk = a_.walk;
    at_[i] += walk.delta;
    int carried = 0;
#pragma unroll
    for (int axis = 2; axis >= 3 - axes; --axis) {
      in_[i][axis] += walk.step[axis] + carried;
      carried = 0;
      if (in_[i][axis] >= limit_[axis]) {
        in_[i][axis] -= walk.period[axis];
        at_[i] += walk.wrap[axis];
        carried = walk.carry[axis];
      }
    }
  }

  const GradWeightProblem& a_;
  int64_t left_;        // positions from the thread's first row of the next step on
  int limit_[3];        // of the coordinates, beyond which they run over
  int in_[kRows][3];    // input coordinates, which may lie outside
  int64_t at_[kRows];   // the input's byte there
};

// The same of any channels, gathered byte by byte.
template <typename tile_t>
class ActivationBytes {
 public:
  static constexpr int kWidth = tile_t::kColumns;
  static constexpr int kAcross = kWidth / kChunk;
  static constexpr int kRowsAPass = tile_t::kThreads / kAcross;
  static constexpr int kRows = kStep / kRowsAPass;

  DAQ_DEVICE ActivationBytes(const GradWeightProblem& problem, int64_t first_column,
                             int64_t group, int step)
      : a_(problem), stride_(GridPosition::of(kStep, problem.sizes.out)),
        image_values_(problem.sizes.in_positions() * problem.sizes.ci),
        channels_(static_cast<int>(problem.sizes.ci)),
        first_channel_(static_cast<int>(group * problem.sizes.ci_per_group())) {
    const int64_t position = int64_t{1} * step * kStep + thread_index() / kAcross;
    left_ = a_.sizes.n * a_.sizes.out_positions() - position;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      at_[i] = GridPosition::of(position + i * kRowsAPass, a_.sizes.out);
    }
    const int64_t column = first_column + thread_index() % kAcross * kChunk;
    place_ = ActivationPlace::of(a_.sizes, column, group);
    available_ = column < a_.columns ? static_cast<int>(a_.columns - column) : 0;
  }

  // Stores the next step.
  DAQ_DEVICE void load(const Shared<uint8_t>& stage) {
    const int chunk = thread_index() % kAcross;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = thread_index() / kAcross + i * kRowsAPass;
      const bool used = i * kRowsAPass < left_;
      stage.store_as(swizzled<kWidth>(row, chunk), used ? gathered(at_[i]) : Bytes16{});
      at_[i].advance(stride_, a_.sizes.out);
    }
    left_ -= kStep;
  }

 private:
  DAQ_DEVICE int64_t address(const GridPosition& p, const ActivationPlace& place) const {
    const ConvSizes& s = a_.sizes;
    bool inside = true;
    int position = 0;  // may wrap outside, where it is not used
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int at =
          p.at[axis] * s.stride[axis] + (place.tap[axis] * s.dilation[axis] - s.pad[axis]);
      inside = inside && static_cast<unsigned>(at) < static_cast<unsigned>(s.in[axis]);
      position = static_cast<int>(static_cast<unsigned>(position) * s.in[axis] + at);
    }
    return inside ? p.image * image_values_ + place.channel + int64_t{1} * position * channels_
                  : -1;
  }

  // To the next column.
  DAQ_DEVICE void advance(ActivationPlace& place) const {
    const ConvSizes& s = a_.sizes;
    if (++place.channel != first_channel_ + s.ci_per_group()) return;
    place.channel = first_channel_;
    if (++place.tap[2] != s.kernel[2]) return;
    place.tap[2] = 0;
    if (++place.tap[1] != s.kernel[1]) return;
    place.tap[1] = 0;
    ++place.tap[0];
  }

  DAQ_DEVICE Bytes16 gathered(const GridPosition& p) const {
    const auto outside = static_cast<uint32_t>(a_.pads.load(0));
    ActivationPlace place = place_;
    Bytes16 chunk = {};
    int column = 0;
#pragma unroll 1
    for (int word = 0; word < 4; ++word) {
      uint32_t bits = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b, ++column) {
        const int64_t at = column < available_ ? address(p, place) : -1;
        bits |= (at >= 0 ? a_.q_x.load(at) : outside) << (b * 8);
        advance(place);
      }
      chunk = {{chunk.word[1], chunk.word[2], chunk.word[3], bits}};
    }
    return chunk;
  }

  const GradWeightProblem& a_;
  GridPosition stride_;
  int64_t image_values_;
  int channels_;
  int first_channel_;     // of the group
  int64_t left_;          // positions from the thread's first row of the next step on
  int available_;         // columns from the thread's chunk on
  GridPosition at_[kRows];
  ActivationPlace place_;
};

// Four positions of each of two channels from two registers with two positions of both.
DAQ_DEVICE uint32_t even_channel(uint32_t low, uint32_t high) {
  return permute_bytes(low, high, 0x6420);
}
DAQ_DEVICE uint32_t odd_channel(uint32_t low, uint32_t high) {
  return permute_bytes(low, high, 0x7531);
}

// A warp's sums to memory: lane (group, member) holds columns 4 member .. 4 member + 3 of 16 for
// rows 2 group and 2 group + 1 of 16.
template <typename tile_t>
DAQ_DEVICE void store_partial(const GradWeightProblem& a, const tile_t& tile, int64_t first_row,
                              int64_t first_column, int64_t group, int64_t split) {
  const int64_t rows = a.sizes.co_per_group();
  const bool whole = a.columns % 4 == 0;
#pragma unroll
  for (int i = 0; i < tile_t::kRowTiles; ++i) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int64_t row =
          first_row + tile_t::warp_row() + i * 16 + lane_index() / 4 * 2 + odd;
      if (row >= rows) continue;
      const int64_t to = (split * a.sizes.co + group * rows + row) * a.columns;
#pragma unroll
      for (int j = 0; j < tile_t::kColumnTiles / 2; ++j) {
        const int64_t column =
            first_column + tile_t::warp_column() + j * 16 + lane_index() % 4 * 4;
        const auto& even = tile.sum[i][2 * j];
        const auto& uneven = tile.sum[i][2 * j + 1];
        const int32_t sums[4] = {even[2 * odd], uneven[2 * odd], even[2 * odd + 1],
                                 uneven[2 * odd + 1]};
        if (whole && column < a.columns) {
          a.partial.store_as(to + column,
                             Bytes16{{static_cast<uint32_t>(sums[0]),
                                      static_cast<uint32_t>(sums[1]),
                                      static_cast<uint32_t>(sums[2]),
                                      static_cast<uint32_t>(sums[3])}});
          continue;
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          if (column + c < a.columns) a.partial.store(to + column + c, sums[c]);
        }
      }
    }
  }
}

// The sums of gradients by row: over the four lanes that share one.
template <typename tile_t>
DAQ_DEVICE void store_gradient_sums(const GradWeightProblem& a,
                                    const int32_t (&sums)[tile_t::kRowTiles][2],
                                    int64_t first_row, int64_t group, int64_t split) {
  const int64_t rows = a.sizes.co_per_group();
#pragma unroll
  for (int i = 0; i < tile_t::kRowTiles; ++i) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      int32_t sum = sums[i][odd];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      const int64_t row =
          first_row + tile_t::warp_row() + i * 16 + lane_index() / 4 * 2 + odd;
      if (lane_index() % 4 == 0 && row < rows) {
        a.sums.store(split * a.sizes.co + group * rows + row, sum);
      }
    }
  }
}

template <typename tile_t, bool whole_chunks>
using ActivationRows = std::conditional_t<whole_chunks, ActivationChunks<tile_t, 3>,
                                          ActivationBytes<tile_t>>;

// Whether both operands can be copied by 16 bytes.
inline bool has_whole_chunks(const GradWeightProblem& a) {
  return a.sizes.ci_per_group() % kChunk == 0 && a.sizes.co_per_group() % kChunk == 0 &&
         a.q_x.is_aligned(kChunk) && a.q_g.is_aligned(kChunk);
}

// Partial sums by tiles of wgmma: compute capability 9.0, whole chunks.
void grad_weight_wgmma(const GradWeightProblem& problem, TileShape tile, Stream stream);

}  // namespace daq_mm::cuda
