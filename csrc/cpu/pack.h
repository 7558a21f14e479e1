// Packing of int8 weights into the panels that the kernels of gemm_tiles.h read, with the column
// sums that zero points need. Used by forward.cpp and grad_input.cpp.
//
// "lane" is the weight axis that results run along (forward: co, grad-input: ci), "depth" the one
// that is summed over.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "cpu/capability.h"

namespace daq_mm::cpu {

// Int8 weights in memory: data[g * group_stride + lane * lane_stride + k * depth_stride +
// tap * tap_stride].
struct WeightView {
  const int8_t* data = nullptr;
  int64_t groups = 1;
  int64_t lanes = 0;  // of one group, as is depth
  int64_t depth = 0;
  int64_t taps = 0;
  int64_t group_stride = 0;
  int64_t lane_stride = 0;
  int64_t depth_stride = 0;
  int64_t tap_stride = 1;
  std::vector<int64_t> tap_order;  // tap_order[packed place] = tap in memory
};

// A panel: at most max_vectors * 16 lanes of one group.
struct LaneBlock {
  int64_t group;
  int64_t first;    // lane within the group
  int64_t lanes;
  int64_t vectors;
  int64_t panel;    // byte offset in PackedWeights::panels
};

struct PackedWeights {
  at::Tensor panels;             // uint8 bytes
  std::vector<LaneBlock> blocks;
  int64_t steps = 0;             // of a tap
  int64_t step_channels = 4;     // channels a step, 4 (bytes) or 2 (words)
  int64_t element = 1;           // bytes of a weight in the panels
  int64_t padded_lanes = 0;      // of one group: the next multiple of 16
  // Sum of the weights over depth, [packed place of the tap][group][padded lane]; empty unless
  // asked for.
  std::vector<int64_t> sums;

  // Off multiples of 4096, so that the taps of one step do not share a cache set when packed.
  int64_t tap_stride(const LaneBlock& block) const {
    const int64_t bytes = steps * step_channels * element * 16 * block.vectors;
    return bytes % 4096 == 0 ? bytes + 320 : bytes;
  }
};

PackedWeights pack_weights(const WeightView& view, Capability capability, bool with_sums);

// One panel in the bytes layout.
struct PackTask {
  const int8_t* data;  // of the first lane
  int64_t vectors;
  int64_t lanes;  // 1..16 * vectors, the others become zero
  int64_t depth;
  int64_t taps;
  int64_t lane_stride;
  int64_t depth_stride;
  int64_t tap_stride;
  const int64_t* place;  // place[tap in memory] = packed place
  uint8_t* out;          // of place 0, step 0
  int64_t place_stride;  // bytes
  int32_t* sums;         // [place][lane], overwritten; or null
};

void pack_panel_avx512(const PackTask& task);

}  // namespace daq_mm::cpu
