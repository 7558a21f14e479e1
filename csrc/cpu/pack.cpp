// Weight packing: splits lanes into panels and fills them in parallel; see pack.h. Called by the
// ops forward and grad_input. The words layout is filled by plain loops, the bytes layout by
// pack_avx512.cpp.

#include "cpu/pack.h"

#include <algorithm>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "cpu/gemm_tiles.h"

namespace daq_mm::cpu {
namespace {

std::vector<LaneBlock> split_lanes(const WeightView& view, int64_t most_vectors) {
  std::vector<LaneBlock> blocks;
  for (int64_t group = 0; group < view.groups; ++group) {
    int64_t first = 0;
    while (first < view.lanes) {
      const int64_t vectors_left = (view.lanes - first + kVector - 1) / kVector;
      int64_t vectors = std::min(vectors_left, most_vectors);
      // A panel of one vector is slow: share the rest out as 3 + 2 rather than 4 + 1.
      if (vectors_left == most_vectors + 1 && most_vectors > 1) vectors = most_vectors - 1;
      const int64_t lanes = std::min(view.lanes - first, vectors * kVector);
      blocks.push_back({group, first, lanes, vectors, 0});
      first += lanes;
    }
  }
  return blocks;
}

// The words layout, int16 [place][step][16][2], of one panel of 16 lanes.
void pack_words(const WeightView& view, const LaneBlock& block, const int64_t* place,
                int64_t steps, int16_t* out, int64_t* sums, int64_t sums_stride) {
  const int8_t* data =
      view.data + block.group * view.group_stride + block.first * view.lane_stride;
  for (int64_t tap = 0; tap < view.taps; ++tap) {
    int16_t* to = out + place[tap] * steps * kVector * 2;
    std::fill(to, to + steps * kVector * 2, 0);
    for (int64_t k = 0; k < view.depth; ++k) {
      for (int64_t lane = 0; lane < block.lanes; ++lane) {
        const int8_t value =
            data[lane * view.lane_stride + k * view.depth_stride + tap * view.tap_stride];
        to[((k / 2) * kVector + lane) * 2 + k % 2] = value;
        if (sums != nullptr) sums[place[tap] * sums_stride + lane] += value;
      }
    }
  }
}

}  // namespace

PackedWeights pack_weights(const WeightView& view, Capability capability, bool with_sums) {
  const bool bytes = uses_bytes(capability);
  PackedWeights packed;
  packed.step_channels = bytes ? 4 : 2;
  packed.element = bytes ? 1 : 2;
  packed.steps = (view.depth + packed.step_channels - 1) / packed.step_channels;
  packed.padded_lanes = (view.lanes + kVector - 1) / kVector * kVector;
  packed.blocks = split_lanes(view, max_vectors(capability));
  int64_t size = 0;
  for (LaneBlock& block : packed.blocks) {
    block.panel = size;
    size += view.taps * packed.tap_stride(block);
  }
  packed.panels = at::empty({std::max<int64_t>(size, 64)}, at::kByte);
  const int64_t sums_stride = view.groups * packed.padded_lanes;
  if (with_sums) packed.sums.assign(view.taps * sums_stride, 0);
  std::vector<int64_t> place(view.taps);
  for (int64_t i = 0; i < view.taps; ++i) place[view.tap_order[i]] = i;

  uint8_t* panels = packed.panels.data_ptr<uint8_t>();
  const int64_t count = static_cast<int64_t>(packed.blocks.size());
  const int64_t grain = std::max<int64_t>(1, 16384 * count / std::max<int64_t>(size, 1));
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> panel_sums;
    for (int64_t i = begin; i < end; ++i) {
      const LaneBlock& block = packed.blocks[i];
      int64_t* sums =
          with_sums ? packed.sums.data() + block.group * packed.padded_lanes + block.first
                    : nullptr;
      if (!bytes) {
        pack_words(view, block, place.data(), packed.steps,
                   reinterpret_cast<int16_t*>(panels + block.panel), sums, sums_stride);
        continue;
      }
      PackTask task;
      task.data = view.data + block.group * view.group_stride + block.first * view.lane_stride;
      task.vectors = block.vectors;
      task.lanes = block.lanes;
      task.depth = view.depth;
      task.taps = view.taps;
      task.lane_stride = view.lane_stride;
      task.depth_stride = view.depth_stride;
      task.tap_stride = view.tap_stride;
      task.place = place.data();
      task.out = panels + block.panel;
      task.place_stride = packed.tap_stride(block);
      const int64_t lanes = block.vectors * kVector;
      if (with_sums) panel_sums.resize(view.taps * lanes);
      task.sums = with_sums ? panel_sums.data() : nullptr;
#if defined(__x86_64__)
      pack_panel_avx512(task);
#endif
      for (size_t j = 0; j < panel_sums.size(); ++j) {
        const int64_t at = static_cast<int64_t>(j);
        sums[at / lanes * sums_stride + at % lanes] = panel_sums[j];
      }
    }
  });
  return packed;
}

}  // namespace daq_mm::cpu
