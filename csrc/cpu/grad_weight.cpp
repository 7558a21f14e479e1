// daq_mm::grad_weight: dW = X (star) G from 8-bit operands.
//
//   dW[co][ci][tap] = float( sum over p of (q_x[p * stride + tap - pad][ci] - zp) * q_g[p][co] )
//                     * (x_step * g_step[co])
//
// q_x uint8 and q_g int8, channels-last; the sum is exact whatever its length. zp is taken out
// afterwards: sum of q_x * q_g minus zp times the sum of q_g over the same positions.
//
// Work is cut into items (group x block of output channels x range of positions), one thread each.
// An item walks its range in chunks that fit the caches; for each tap of a chunk it packs the
// pixels that meet there (grad_weight_positions.h) into panels and multiplies them tile by tile
// (grad_weight_kernels.h). Convolutions with few input channels gather all taps of a position into
// one row first, which then counts as the channels of a single tap. Groups of few channels are
// treated as one with more, of which the tiles between different groups are left out. Ranges of
// positions have their own int32 sums, of at most kMaxContraction products each, and are added up
// in int64.

#include "cpu/grad_weight.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/grad_weight_kernels.h"
#include "cpu/grad_weight_plan.h"
#include "cpu/grad_weight_positions.h"
#include "cpu/op_checks.h"
#include "cpu/products.h"
#include "cpu/quantize.h"

namespace daq_mm::cpu {
namespace {

constexpr int64_t kStreamBytes = int64_t{2} << 20;

template <typename T>
struct AlignedDelete {
  void operator()(T* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], AlignedDelete<T>>;

// Uninitialized and aligned to cache lines.
template <typename T>
Buffer<T> allocate(int64_t count) {
  return Buffer<T>(static_cast<T*>(::operator new[](count * sizeof(T), std::align_val_t{64})));
}

// An odd number of cache lines, so that panels don't meet in the same cache sets.
int64_t panel_bytes(int64_t groups, int64_t group_bytes) {
  const int64_t lines = ceil_div(groups * group_bytes, 64);
  return (lines | 1) * 64;
}

class GradWeight {
 public:
  // geo's groups may stand for several of dW's: `merged` of ci x co channels each.
  struct Merged {
    int64_t groups, ci, co;
  };

  // `moved`: bytes of q_g are values + 128.
  GradWeight(const ConvGeometry& geo, const Merged& merged, const uint8_t* q_x, int32_t zero_point,
             const int8_t* q_g, bool moved, const GradWeightOutput& output)
      : geo_(geo),
        merged_(merged),
        output_(output),
        zero_point_(zero_point),
        kernels_(grad_weight_kernels()),
        q_x_(q_x),
        q_g_(q_g),
        moved_(moved),
        positions_(geo, q_x, q_g),
        plan_(Plan::make(geo, at::get_num_threads())),
        evenly_spaced_(!plan_.rows && geo.stride == std::array<int64_t, 3>{1, 1, 1}) {
    // Sums go straight to dW where an item sees all positions and rows of dW are written densely.
    direct_ = plan_.ranges == 1 && (output.ci_stride == 1 || geo.taps() == 1);
    whole_panels_ = merged.groups == 1 && output.dtype == at::kFloat &&
                    plan_.channels % kXPanel == 0 && (!plan_.rows || output.ci_stride == 1);
    dense_ = whole_panels_ && (output.ci_stride == 1 || geo.taps() == 1);
    stream_ = dense_ && direct_ && geo.co * output.co_stride * 4 >= kStreamBytes &&
              reinterpret_cast<uintptr_t>(output.data) % 64 == 0;
    const int64_t range = ceil_div(plan_.positions, plan_.ranges);
    if (!direct_ || range > plan_.chunk) {
      tiles_ = allocate<int32_t>(plan_.ranges * geo.groups * plan_.tiles() * kTile);
    }
    sum_channels_ = round_up(plan_.g_panels * kGPanel, kPackBlock) + kPackBlock;
    g_sums_.resize(plan_.ranges * geo.groups * plan_.taps * sum_channels_);
  }

  void run() {
    const int64_t items = plan_.ranges * geo_.groups * plan_.blocks;
    at::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item % plan_.blocks;
        const int64_t group = item / plan_.blocks % geo_.groups;
        run_item(item / (plan_.blocks * geo_.groups), group, block);
      }
    });
    if (!direct_) finish();
  }

 private:
  int32_t* tile_at(int64_t range, int64_t group, int64_t g_panel, int64_t x_panel, int64_t tap) {
    const int64_t panel = ((range * geo_.groups + group) * plan_.g_panels + g_panel) *
                          plan_.x_panels + x_panel;
    return tiles_.get() + (panel * plan_.taps + tap) * kTile;
  }

  int32_t* sums_at(int64_t range, int64_t group, int64_t tap) {
    return g_sums_.data() +
           ((range * geo_.groups + group) * plan_.taps + tap) * sum_channels_;
  }

  // Memory that an item works in.
  struct Scratch {
    std::vector<const uint8_t*> x_pixels;
    std::vector<const int8_t*> g_pixels;
    std::vector<uint8_t> outside;   // one pixel of x's zeros
    std::vector<int8_t> g_outside;  // and one of g's
    Ahead ahead;
    std::optional<TapPositions::RowGather> gather;
    Buffer<uint8_t> rows, x;
    Buffer<int8_t> g;
    int64_t row_bytes;
  };

  Scratch make_scratch(int64_t group) const {
    Scratch s;
    const int64_t count = plan_.chunk + 8;
    s.x_pixels.resize(count);
    s.g_pixels.resize(count);
    s.outside.assign(std::max(geo_.ci, plan_.channels) + 64, 0);
    s.g_outside.assign(geo_.co + 64, moved_ ? int8_t{-128} : int8_t{0});
    s.row_bytes = round_up(plan_.channels + TapPositions::kRowSlack, 16);
    if (plan_.rows) {
      s.gather.emplace(positions_, group * geo_.ci_per_group(), geo_.ci_per_group(),
                       static_cast<uint8_t>(zero_point_));
      s.rows = allocate<uint8_t>(plan_.chunk * s.row_bytes);
    }
    const int64_t groups = ceil_div(count, kernels_.group);
    s.x = allocate<uint8_t>(panel_bytes(groups, kXGroupBytes) * (kPackBlock / kXPanel));
    s.g = allocate<int8_t>(panel_bytes(groups, kGGroupBytes) *
                           round_up(plan_.block, kPackBlock / kGPanel));
    return s;
  }

  void run_item(int64_t range, int64_t group, int64_t block) {
    Scratch s = make_scratch(group);
    const int64_t begin = plan_.positions * range / plan_.ranges;
    const int64_t end = plan_.positions * (range + 1) / plan_.ranges;
    for (int64_t p = begin; p < end; p += plan_.chunk) {
      const int64_t stop = std::min(p + plan_.chunk, end);
      for (int64_t tap = 0; tap < plan_.taps; ++tap) {
        if (tap == plan_.taps - 1) fetch_ahead(s, stop, std::min(stop + plan_.chunk, end));
        run_tap(s, range, group, block, tap, p, stop, p == begin, stop == end);
      }
    }
    // Streaming stores are ordered by a locked instruction only.
    if (stream_) std::atomic_thread_fence(std::memory_order_seq_cst);
  }

  // Let an item's tiles of one tap fetch the pixels of positions [begin, end), which come next.
  // With strides, x's pixels are a small part of the memory that they span: left to the packing.
  void fetch_ahead(Scratch& s, int64_t begin, int64_t end) const {
    const int64_t count = geo_.groups == 1 ? std::max(end - begin, int64_t{0}) : 0;
    const int64_t tiles = plan_.block * plan_.x_panels;
    s.ahead.plan(q_g_ + begin * geo_.co, count * geo_.co, q_x_ + begin * geo_.ci,
                 geo_.out == geo_.in ? count * geo_.ci : 0,
                 tiles * ceil_div(plan_.chunk, kernels_.group));
  }

  // List the pixels of positions [begin, end) in s; returns their number, a multiple of group.
  int64_t list_pixels(Scratch& s, int64_t group, int64_t tap, int64_t begin, int64_t end) {
    int64_t count;
    if (plan_.rows) {
      s.gather->gather(begin, end, s.row_bytes, s.rows.get());
      // Every position counts here, those that meet padding too.
      count = positions_.list(0, begin, end, s.outside.data(), s.x_pixels.data(),
                              s.g_pixels.data());
      for (int64_t i = 0; i < count; ++i) s.x_pixels[i] = s.rows.get() + i * s.row_bytes;
    } else {
      count = positions_.list(tap, begin, end, nullptr, s.x_pixels.data(), s.g_pixels.data());
    }
    for (; count % kernels_.group != 0; ++count) {
      s.x_pixels[count] = s.outside.data();
      s.g_pixels[count] = s.g_outside.data();
    }
    return count;
  }

  void run_tap(Scratch& s, int64_t range, int64_t group, int64_t block, int64_t tap,
               int64_t begin, int64_t end, bool first, bool last) {
    const int64_t count = list_pixels(s, group, tap, begin, end);
    const int64_t groups = count / kernels_.group;
    const int64_t g_panel_bytes = panel_bytes(groups, kGGroupBytes);
    const int64_t x_panel_bytes = panel_bytes(groups, kXGroupBytes);
    const int64_t first_panel = block * plan_.block;
    const int64_t last_panel = std::min(first_panel + plan_.block, plan_.g_panels);
    int32_t* sums = sums_at(range, group, tap);
    constexpr int64_t kPanels = kPackBlock / kGPanel;
    for (int64_t panel = first_panel; panel < last_panel; panel += kPanels) {
      const int64_t channel = panel * kGPanel;
      const int64_t channels = std::min({geo_.co_per_group() - channel, kPackBlock,
                                         (last_panel - panel) * kGPanel});
      // Through a buffer: the kernel adds to a whole block's sums, of which others may be ours.
      alignas(64) int32_t block_sums[kPackBlock] = {};
      kernels_.pack_g(s.g_pixels.data(), count, group * geo_.co_per_group() + channel, channels,
                      g_panel_bytes, moved_, s.g.get() + (panel - first_panel) * g_panel_bytes,
                      block_sums);
      for (int64_t i = 0; i < channels; ++i) sums[channel + i] += block_sums[i];
    }
    const int64_t x_first = plan_.rows ? 0 : group * geo_.ci_per_group();
    for (int64_t channel = 0; channel < plan_.channels; channel += kPackBlock) {
      const int64_t channels = std::min(plan_.channels - channel, kPackBlock);
      kernels_.pack_x(s.x_pixels.data(), count, x_first + channel, channels, x_panel_bytes,
                      s.x.get());
      if (evenly_spaced_ && channel + kPackBlock < plan_.channels) {
        s.ahead.plan_lines(s.x_pixels[0] + x_first + channel + kPackBlock, geo_.ci, count);
      }
      for (int64_t i = 0; i * kXPanel < channels; ++i) {
        const int64_t x_panel = channel / kXPanel + i;
        const uint8_t* x = s.x.get() + i * x_panel_bytes;
        for (int64_t panel = first_panel; panel < last_panel; ++panel) {
          if (!meet(panel, x_panel)) continue;
          const int8_t* g = s.g.get() + (panel - first_panel) * g_panel_bytes;
          alignas(64) int32_t own[kTile];
          const bool now = direct_ && last;
          int32_t* tile = now && first ? own : tile_at(range, group, panel, x_panel, tap);
          const char* ahead = nullptr;
          const int64_t ahead_step = s.ahead.take(groups, &ahead);
          kernels_.tile(x, g, groups, !first, tile, ahead, ahead_step);
          if (now) store_tile(tile, group, panel, x_panel, tap);
        }
      }
    }
  }

  // Rows of a tile that are output channels, channels that are x's.
  int64_t tile_rows(int64_t g_panel) const {
    return std::min(geo_.co_per_group() - g_panel * kGPanel, kGPanel);
  }
  int64_t tile_channels(int64_t x_panel) const {
    return std::min(plan_.channels - x_panel * kXPanel, kXPanel);
  }

  // Whether a tile holds products of channels of the same group.
  bool meet(int64_t g_panel, int64_t x_panel) const {
    if (merged_.groups == 1 || plan_.rows) return true;
    const int64_t first = g_panel * kGPanel / merged_.co;
    const int64_t last = (g_panel * kGPanel + tile_rows(g_panel) - 1) / merged_.co;
    return x_panel * kXPanel < (last + 1) * merged_.ci &&
           x_panel * kXPanel + kXPanel > first * merged_.ci;
  }

  // Input channels [ci, ci + count) of a row at one tap; those of the row's own group are wanted.
  template <typename sum_t>
  void store_channels(int64_t co, int64_t ci, int64_t tap, int64_t count, const sum_t* sums) const {
    const int64_t own = co / merged_.co % merged_.groups * merged_.ci;
    const int64_t from = std::max(ci, own), to = std::min(ci + count, own + merged_.ci);
    if (from < to) output_.store(co, from - own, tap, to - from, sums + (from - ci));
  }

  // One row of sums of a tile to dW; with rows of all taps its channels belong to several taps.
  template <typename sum_t>
  void store_row(int64_t co, int64_t x_panel, int64_t tap, const sum_t* sums) const {
    const int64_t channel = x_panel * kXPanel, count = tile_channels(x_panel);
    if (!plan_.rows) {
      store_channels(co, channel, tap, count, sums);
      return;
    }
    const int64_t width = geo_.ci_per_group();
    for (int64_t i = 0; i < count;) {
      const int64_t ci = (channel + i) % width;
      const int64_t some = std::min(width - ci, count - i);
      store_channels(co, ci, (channel + i) / width, some, sums + i);
      i += some;
    }
  }

  // Where a tile goes with whole_panels_.
  struct TileRows {
    const float* scale;
    float* out;
  };
  TileRows rows_of(int64_t group, int64_t g_panel, int64_t x_panel, int64_t tap) const {
    const int64_t co = group * geo_.co_per_group() + g_panel * kGPanel;
    return {output_.scale + co, static_cast<float*>(output_.data) + co * output_.co_stride +
                                    tap * output_.tap_stride +
                                    x_panel * kXPanel * output_.ci_stride};
  }

  void store_tile(int32_t* tile, int64_t group, int64_t g_panel, int64_t x_panel, int64_t tap) {
    const int32_t* g_sums = sums_at(0, group, tap) + g_panel * kGPanel;
    if (dense_) {
      int32_t excess[kGPanel];
      for (int64_t r = 0; r < kGPanel; ++r) excess[r] = zero_point_ * g_sums[r];
      const TileRows rows = rows_of(group, g_panel, x_panel, tap);
      kernels_.store(tile, tile_rows(g_panel), excess, rows.scale, rows.out, output_.co_stride,
                     stream_);
      return;
    }
    for (int64_t r = 0; r < tile_rows(g_panel); ++r) {
      int32_t* sums = tile + r * kXPanel;
      const int32_t excess = zero_point_ * g_sums[r];
      for (int64_t i = 0; i < kXPanel; ++i) sums[i] -= excess;
      store_row(group * geo_.co_per_group() + g_panel * kGPanel + r, x_panel, tap, sums);
    }
  }

  // Add the ranges' sums up and store them.
  void finish() {
    const int64_t panels = geo_.groups * plan_.g_panels;
    at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t group = at / plan_.g_panels, g_panel = at % plan_.g_panels;
        for (int64_t x_panel = 0; x_panel < plan_.x_panels; ++x_panel) {
          if (!meet(g_panel, x_panel)) continue;
          for (int64_t tap = 0; tap < plan_.taps; ++tap) {
            if (plan_.ranges == 1 && !whole_panels_) {
              store_tile(tile_at(0, group, g_panel, x_panel, tap), group, g_panel, x_panel, tap);
            } else {
              finish_tile(group, g_panel, x_panel, tap);
            }
          }
        }
      }
    });
  }

  void finish_tile(int64_t group, int64_t g_panel, int64_t x_panel, int64_t tap) {
    if (whole_panels_) {
      int64_t excess[kGPanel] = {};
      for (int64_t range = 0; range < plan_.ranges; ++range) {
        const int32_t* g_sums = sums_at(range, group, tap) + g_panel * kGPanel;
        for (int64_t r = 0; r < kGPanel; ++r) excess[r] += int64_t{zero_point_} * g_sums[r];
      }
      const TileRows rows = rows_of(group, g_panel, x_panel, tap);
      kernels_.store_sums(tile_at(0, group, g_panel, x_panel, tap),
                          geo_.groups * plan_.tiles() * kTile, plan_.ranges, tile_rows(g_panel),
                          excess, rows.scale, rows.out, output_.co_stride, output_.ci_stride);
      return;
    }
    for (int64_t r = 0; r < tile_rows(g_panel); ++r) {
      int64_t sums[kXPanel] = {};
      for (int64_t range = 0; range < plan_.ranges; ++range) {
        const int32_t* tile = tile_at(range, group, g_panel, x_panel, tap) + r * kXPanel;
        const int64_t excess = int64_t{zero_point_} *
                               sums_at(range, group, tap)[g_panel * kGPanel + r];
        for (int64_t i = 0; i < kXPanel; ++i) sums[i] += tile[i] - excess;
      }
      store_row(group * geo_.co_per_group() + g_panel * kGPanel + r, x_panel, tap, sums);
    }
  }

  const ConvGeometry& geo_;
  const Merged merged_;
  const GradWeightOutput& output_;
  const int32_t zero_point_;
  const GradWeightKernels& kernels_;
  const uint8_t* const q_x_;
  const int8_t* const q_g_;
  const bool moved_;
  const TapPositions positions_;
  const Plan plan_;
  const bool evenly_spaced_;  // x's pixels of neighbouring positions are neighbours
  bool direct_;
  bool whole_panels_;            // dW is float32, a tile's row has even steps there
  bool dense_;                   // of 1
  bool stream_;                  // and large enough to be written past the caches
  Buffer<int32_t> tiles_;        // [range][group][g panel][x panel][tap][8][32]
  std::vector<int32_t> g_sums_;  // [range][group][tap][sum_channels_]
  int64_t sum_channels_;
};

template <typename T, typename sum_t>
inline void store_as(T* out, int64_t stride, float scale, int64_t count, const sum_t* sums) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<T>(static_cast<float>(sums[i]) * scale);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      out[i * stride] = static_cast<T>(static_cast<float>(sums[i]) * scale);
    }
  }
}

}  // namespace

GradWeightOutput GradWeightOutput::make(const at::Tensor& dw, at::MemoryFormat format,
                                        const ConvGeometry& geo, const float* scale) {
  const bool last = format != at::MemoryFormat::Contiguous;
  return {dw.data_ptr(), dw.scalar_type(), geo.ci_per_group() * geo.taps(),
          last ? 1 : geo.taps(), last ? geo.ci_per_group() : 1, scale};
}

template <typename sum_t>
void GradWeightOutput::store(int64_t co, int64_t ci, int64_t tap, int64_t count,
                             const sum_t* sums) const {
  const int64_t at = co * co_stride + ci * ci_stride + tap * tap_stride;
  switch (dtype) {
    case at::kFloat:
      store_as(static_cast<float*>(data) + at, ci_stride, scale[co], count, sums);
      break;
    case at::kBFloat16:
      store_as(static_cast<c10::BFloat16*>(data) + at, ci_stride, scale[co], count, sums);
      break;
    case at::kHalf:
      store_as(static_cast<c10::Half*>(data) + at, ci_stride, scale[co], count, sums);
      break;
    default: {  // int32, modulo 2**32
      int32_t* out = static_cast<int32_t*>(data) + at;
      for (int64_t i = 0; i < count; ++i) out[i * ci_stride] = static_cast<int32_t>(sums[i]);
    }
  }
}

template void GradWeightOutput::store(int64_t, int64_t, int64_t, int64_t, const int32_t*) const;
template void GradWeightOutput::store(int64_t, int64_t, int64_t, int64_t, const int64_t*) const;

at::Tensor grad_weight_cpu(const at::Tensor& q_x, float x_step, int32_t zero_point,
                           const at::Tensor& q_g, const at::Tensor& g_step,
                           const ConvGeometry& geometry, at::ScalarType out_dtype,
                           at::MemoryFormat format) {
  at::Tensor dw = empty_results(geometry.w_size(), q_x.options().dtype(out_dtype), format);
  if (geometry.grad_weight_contraction() == 0 || dw.numel() == 0) return dw.zero_();
  std::vector<float> scale(geometry.co);
  const float* g_steps = g_step.const_data_ptr<float>();
  for (int64_t c = 0; c < geometry.co; ++c) scale[c] = x_step * g_steps[c];
  const auto output = GradWeightOutput::make(dw, format, geometry, scale.data());
  const uint8_t* x = q_x.const_data_ptr<uint8_t>();
  const auto* g = static_cast<const int8_t*>(q_g.const_data_ptr());
  const bool moved = q_g.scalar_type() == at::kByte;
  TORCH_INTERNAL_ASSERT(!moved || takes_moved_gradient(geometry));
  if (geometry.is_depthwise()) {
    grad_weight_depthwise(x, zero_point, g, geometry, output);
  } else {
    const int64_t merge = groups_to_merge(geometry);
    const ConvGeometry merged = with_groups(geometry, geometry.groups / merge);
    GradWeight(merged, {merge, geometry.ci_per_group(), geometry.co_per_group()}, x, zero_point, g,
               moved, output)
        .run();
  }
  return dw;
}

namespace {

at::Tensor grad_weight(const at::Tensor& q_x, const at::Tensor& x_qparams, const at::Tensor& q_g,
                       const at::Tensor& g_step, at::IntArrayRef kernel_size,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                       int64_t groups, at::ScalarType out_dtype, bool channels_last) {
  check_dtype(q_x, at::kByte, "q_x");
  check_dtype(x_qparams, at::kFloat, "x_qparams");
  check_dtype(q_g, at::kChar, "q_g");
  check_dtype(g_step, at::kFloat, "g_step");
  check_out_dtype(out_dtype, /*allow_int32=*/true);
  check_spatial_rank(q_x, "q_x");
  check_spatial_rank(q_g, "q_g");
  TORCH_CHECK_VALUE(groups >= 1, "groups=", groups, " must be at least 1");
  std::vector<int64_t> w_size{q_g.size(1), q_x.size(1) / groups};
  w_size.insert(w_size.end(), kernel_size.begin(), kernel_size.end());
  const auto geometry =
      ConvGeometry::make(q_x.sizes(), w_size, stride, padding, dilation, groups);
  check_size(q_g, geometry.out_size(), "q_g");
  check_size(x_qparams, {2}, "x_qparams");
  check_size(g_step, {geometry.co}, "g_step");
  const auto qparams = x_qparams.contiguous();
  const auto last = channels_last_format(geometry.rank);
  return grad_weight_cpu(q_x.contiguous(last), qparams.const_data_ptr<float>()[0],
                         checked_zero_point(qparams.const_data_ptr<float>()[1]), q_g.contiguous(last),
                         g_step.contiguous(), geometry, out_dtype,
                         channels_last ? last : at::MemoryFormat::Contiguous);
}

}  // namespace

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) { m.impl("grad_weight", &grad_weight); }

}  // namespace daq_mm::cpu
