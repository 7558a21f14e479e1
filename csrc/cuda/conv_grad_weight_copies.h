// Copies of grad-weight's operands into shared memory, a stage of 64 positions at a time, as they lie:
// [position][channels of the block's rows or columns], with any stride, dilation and padding.
#pragma once

#include <type_traits>

#include "cuda/conv_grad_weight.h"

namespace daq_mm::cuda {

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

template <typename tile_t, bool whole_chunks>
using ActivationRows = std::conditional_t<whole_chunks, ActivationChunks<tile_t, 3>,
                                          ActivationBytes<tile_t>>;

}  // namespace daq_mm::cuda
