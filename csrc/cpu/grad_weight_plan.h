// How grad-weight cuts its work, and what it fetches ahead; used by grad_weight.cpp alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_geometry.h"
#include "cpu/grad_weight_kernels.h"

namespace daq_mm::cpu {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

constexpr int64_t kChunk = 784;      // positions whose panels stay in the caches together
constexpr int64_t kRowChunk = 512;   // the same where rows of all taps are gathered
constexpr int64_t kRowsBelow = 32;   // gather rows below this number of input channels a group
constexpr int64_t kMaxBlock = 512;   // output channels of an item: their panels fit in L2
constexpr int64_t kMergeUpTo = 64;   // channels of groups that are treated as one: a pack block
constexpr int64_t kSplitBytes = int64_t{4} << 20;  // sums that all ranges of positions may take

// Memory that will be packed soon, fetched into L2 little by little: each group of a tile touches
// the next few bytes. A burst would fill the processor's miss buffers and hold up the tile itself.
class Ahead {
 public:
  // Spread [a, a + a_bytes) and [b, b + b_bytes) over `groups` groups.
  void plan(const void* a, int64_t a_bytes, const void* b, int64_t b_bytes, int64_t groups) {
    spans_[0] = {static_cast<const char*>(a), a_bytes};
    spans_[1] = {static_cast<const char*>(b), b_bytes};
    step_ = std::min(ceil_div(a_bytes + b_bytes, std::max(groups, int64_t{1})), int64_t{64});
  }
  // Before all that: `lines` cache lines, `stride` bytes apart.
  void plan_lines(const void* first, int64_t stride, int64_t lines) {
    lines_ = {static_cast<const char*>(first), lines};
    lines_stride_ = stride;
  }
  // Where the next tile starts to fetch; it goes on by the returned bytes a group.
  int64_t take(int64_t groups, const char** start) {
    if (lines_.bytes > 0) {
      *start = lines_.at;
      lines_.at += groups * lines_stride_;
      lines_.bytes -= groups;
      return lines_stride_;
    }
    Span& span = spans_[spans_[0].bytes > 0 ? 0 : 1];
    *start = span.at;
    if (span.bytes <= 0) return 0;
    span.at += groups * step_;
    span.bytes -= groups * step_;
    return step_;
  }

 private:
  struct Span {
    const char* at = nullptr;
    int64_t bytes = 0;
  };
  Span spans_[2];
  int64_t step_ = 0;
  Span lines_;  // its `bytes` are lines
  int64_t lines_stride_ = 0;
};

struct Plan {
  bool rows;            // all taps of a position are one row of channels
  int64_t taps;         // 1 with rows
  int64_t channels;     // of x, in a group: Ci / groups, times the taps with rows
  int64_t x_panels;     // a group's
  int64_t g_panels;
  int64_t block;        // g panels of an item
  int64_t blocks;
  int64_t ranges;       // of positions
  int64_t positions;    // of all ranges
  int64_t chunk;

  int64_t tiles() const { return g_panels * x_panels * taps; }

  static Plan make(const ConvGeometry& geo, int64_t threads) {
    Plan plan;
    plan.rows = geo.ci_per_group() < kRowsBelow && geo.taps() > 1;
    plan.taps = plan.rows ? 1 : geo.taps();
    plan.channels = geo.ci_per_group() * (plan.rows ? geo.taps() : 1);
    plan.x_panels = ceil_div(plan.channels, kXPanel);
    plan.g_panels = ceil_div(geo.co_per_group(), kGPanel);
    plan.positions = geo.grad_weight_contraction();
    plan.chunk = plan.rows ? kRowChunk : kChunk;
    // Threads share the positions, and add their sums up in the end, or the output channels, and
    // pack all of x each: whichever costs less. Packing takes a byte about 1/18 cycle, adding up a
    // sum about 2, much of it for another core's cache lines.
    const int64_t wanted = ceil_div(threads, geo.groups);
    const int64_t sum_bytes = plan.tiles() * geo.groups * kTile * 4;
    const int64_t packing =
        plan.positions * plan.channels * plan.taps / 18 * (wanted - 1) / wanted;
    const bool adds_up = plan.rows || plan.tiles() * kTile * 2 <= packing;
    const int64_t affordable =
        adds_up ? std::max(kSplitBytes / sum_bytes, int64_t{1}) : int64_t{1};
    const int64_t useful = std::max(plan.positions / plan.chunk, int64_t{1});
    plan.ranges = std::max(std::min({wanted, affordable, useful}),
                           ceil_div(plan.positions, kMaxContraction));
    const int64_t blocks = std::max(ceil_div(wanted, plan.ranges),
                                    ceil_div(plan.g_panels * kGPanel, kMaxBlock));
    plan.block = ceil_div(plan.g_panels, std::min(blocks, plan.g_panels));
    plan.blocks = ceil_div(plan.g_panels, plan.block);
    // Even chunks.
    const int64_t range = ceil_div(plan.positions, plan.ranges);
    plan.chunk = ceil_div(range, ceil_div(range, plan.chunk));
    return plan;
  }
};

// How many neighbouring groups to treat as one.
inline int64_t groups_to_merge(const ConvGeometry& geo) {
  int64_t merge = 1;
  const int64_t channels = std::max(geo.ci_per_group(), geo.co_per_group());
  for (int64_t n = 2; n <= geo.groups && n * channels <= kMergeUpTo; ++n) {
    if (geo.groups % n == 0) merge = n;
  }
  return merge;
}

inline ConvGeometry with_groups(ConvGeometry geo, int64_t groups) {
  geo.groups = groups;
  return geo;
}

}  // namespace daq_mm::cpu
