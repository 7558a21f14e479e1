// Whether and how compute capability 9.0's copy engine can bring a convolution's operands.

#include "cuda/conv_wgmma.h"

#include <algorithm>

namespace daq_mm::cuda {

int walk_axes(const ConvSizes& s) {
  return s.in[0] == 1 && s.out[0] == 1 && s.kernel[0] == 1 && s.pad[0] == 0 ? 2 : 3;
}

WalkMapping walk_of(const ConvSizes& s, bool backward, int64_t phase, int span, const void* data) {
  const ConvMap map = conv_map(s, backward, phase);
  WalkMapping walk;
  walk.data = data;
  walk.axes = walk_axes(s);
  walk.channels = backward ? s.co : s.ci;
  walk.images = s.n;
  walk.pixels = 128;
  walk.span = span;
  for (int a = 0; a < 3; ++a) {
    const AxisMap& axis = map.axis[a];
    walk.size[a] = backward ? s.out[a] : s.in[a];
    walk.step[a] = axis.count > 1 ? axis.multiplier : 1;
    walk.lower[a] = lowest_shift(axis);
    walk.upper[a] = walk.lower[a] + (axis.count - 1) * walk.step[a] + 1 - walk.size[a];
    walk.most_offset[a] = axis.taps > 0 ? (axis.taps - 1) * std::abs(axis.shift_step) : 0;
  }
  return walk;
}

bool has_padding(const ConvSizes& s, bool backward) {
  for (int64_t phase = 0; phase < phases(s, backward); ++phase) {
    const WalkMapping walk = walk_of(s, backward, phase, 64, nullptr);
    for (int a = 0; a < 3; ++a) {
      if (walk.lower[a] < 0 || walk.upper[a] + walk.most_offset[a] > 0) return true;
    }
  }
  return false;
}

const char* wgmma_refusal(const ConvSizes& s, bool backward) {
  const int64_t depth = backward ? s.co_per_group() : s.ci_per_group();
  if (s.is_depthwise()) return "depthwise";
  // A group's first channel would lie at no multiple of 16 bytes, which no document forbids for
  // copies of a walk and no program was found to rely on.
  if (s.groups > 1 && depth % 16 != 0) return "channels of a group that are no multiple of 16";
  if (depth * s.taps() > kMostInt32Terms) return "a contraction of more than 65536 terms";
  if (phases(s, backward) > kMostWgmmaPhases) return "more than 8 phases of the stride";
  for (int64_t phase = 0; phase < phases(s, backward); ++phase) {
    const ConvMap map = conv_map(s, backward, phase);
    if (map.positions() == 0 || map.taps() == 0) continue;  // no copies
    const WalkMapping walk = walk_of(s, backward, phase, wgmma_span(depth), nullptr);
    if (const char* reason = refusal(walk); reason != nullptr) return reason;
  }
  return nullptr;
}

const char* grad_weight_wgmma_refusal(const ConvSizes& s) {
  if (s.is_depthwise()) return "depthwise";
  if (s.ci_per_group() % 16 != 0 || s.co_per_group() % 16 != 0) {
    return "channels of a group that are no multiple of 16";
  }
  return nullptr;
}

double wgmma_padding(const ConvSizes& s, bool backward) {
  const int64_t depth = backward ? s.co_per_group() : s.ci_per_group();
  const int64_t span = wgmma_span(depth);
  return static_cast<double>(ceil_div(depth, span) * span) / static_cast<double>(depth);
}

}  // namespace daq_mm::cuda
