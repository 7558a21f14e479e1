// Sweeps over a float tensor (N, C, *spatial) that reduce it to numbers a channel: for
// daq_mm::update_thresholds and for the bias gradient of daq_mm::conv_backward.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/float_view.h"

namespace daq_mm::cpu {

struct ChannelMoments {
  std::vector<double> sum, squares;  // (C,)
};

struct ChannelTails {
  std::vector<int64_t> above_own, above_all;  // (C,)
};

// Absolute maxima of the channels and then of the tensor (C + 1,); NaN where there is one. With
// `moments`, the same sweep sums values and squares. The view is not empty.
std::vector<float> channel_maxima(const FloatView& view, ChannelMoments* moments);

// Numbers of magnitudes above own[c] and above `all`, for each channel.
ChannelTails channel_tails(const FloatView& view, const std::vector<float>& own, float all);

// Sums of the channels in double, as float32 (C,).
std::vector<float> channel_sums(const FloatView& view);

}  // namespace daq_mm::cpu
