// Packing of depthwise weights; see depthwise.h. Called by forward.cpp and grad_input.cpp.

#include "cpu/depthwise.h"

#include <algorithm>

#include <ATen/ops/zeros.h>

namespace daq_mm::cpu {
namespace {

// Byte of a panel's quads at which tap i of a phase of `taps` stands for a channel.
int64_t byte_place(int64_t i, int64_t taps, int64_t channel) {
  const int64_t quad = taps == 9 ? i % 3 : i / 4;
  const int64_t slot = taps == 9 ? i / 3 : i % 4;
  // Interleaving leaves channels 16 L + 4 v + j in vector v, lane 4 L + j.
  const int64_t vector = channel % 16 / 4;
  const int64_t lane = channel / 16 * 4 + channel % 4;
  return ((quad * 4 + vector) * 16 + lane) * 4 + slot;
}

}  // namespace

PackedWeights pack_depthwise(const int8_t* w, int64_t channels,
                             const std::vector<int64_t>& tap_order,
                             const std::vector<int64_t>& first_taps, Capability capability) {
  const bool bytes = uses_bytes(capability);
  const int64_t taps = static_cast<int64_t>(tap_order.size());
  PackedWeights packed;
  packed.steps = 1;
  packed.step_channels = 1;
  packed.element = bytes ? 1 : 2;
  packed.padded_lanes = (channels + kDepthwiseLanes - 1) / kDepthwiseLanes * kDepthwiseLanes;
  const int64_t panel = taps * kDepthwiseLanes * (bytes ? 4 : 2);
  for (int64_t first = 0; first < channels; first += kDepthwiseLanes) {
    packed.blocks.push_back({0, first, std::min(kDepthwiseLanes, channels - first), kMaxVectors,
                             first / kDepthwiseLanes * panel});
  }
  packed.panels = at::zeros({packed.padded_lanes / kDepthwiseLanes * panel}, at::kByte);
  packed.sums.assign(taps * packed.padded_lanes, 0);
  uint8_t* panels = packed.panels.data_ptr<uint8_t>();
  for (size_t phase = 0; phase + 1 < first_taps.size(); ++phase) {
    const int64_t count = first_taps[phase + 1] - first_taps[phase];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = first_taps[phase] + i;
      for (int64_t c = 0; c < channels; ++c) {
        const int8_t value = w[c * taps + tap_order[place]];
        uint8_t* of_block = panels + c / kDepthwiseLanes * panel;
        const int64_t lane = c % kDepthwiseLanes;
        if (bytes) {
          of_block += depthwise_phase_offset(capability, first_taps[phase]);
          of_block[byte_place(i, count, lane)] = static_cast<uint8_t>(value);
          // Two pixels share a vector where a block has half its channels: the second one's weights.
          if (channels - c / kDepthwiseLanes * kDepthwiseLanes <= kDepthwiseLanes / 2) {
            of_block[byte_place(i, count, lane + kDepthwiseLanes / 2)] =
                static_cast<uint8_t>(value);
          }
        } else {
          reinterpret_cast<int16_t*>(of_block)[place * kDepthwiseLanes + lane] = value;
        }
        packed.sums[place * packed.padded_lanes + c] = value;
      }
    }
  }
  return packed;
}

}  // namespace daq_mm::cpu
