// Blocks, threads and row pointers of forward and grad-input; see gemm_driver.h. Called by
// forward.cpp and grad_input.cpp.

#include "cpu/gemm_driver.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "cpu/depthwise.h"
#include "cpu/gemm_rows.h"
#include "cpu/store_planes.h"

namespace daq_mm::cpu {
namespace {

// 255 * 128 * this stays below 2^31: a sum of so many products is exact in int32.
constexpr int64_t kSafeContraction = 65792;
// Pixels of a block: their rows and results should stay in a core's second-level cache.
constexpr int64_t kBlockPixels = 480;
constexpr int64_t kBlockBytes = 256 * 1024;
// Results of this size leave the caches before anyone reads them.
constexpr int64_t kStreamingBytes = 32 * 1024 * 1024;

// One piece of work: pixels of a phase times some of the lane blocks.
struct Item {
  int32_t phase;
  int32_t first_block, last_block;
  int64_t first_pixel, pixels;
  int32_t part;  // of the statistics: the same for all items of these pixels
};

bool bfloat16_stays_normal(const GemmProblem& p) {
  // A nonzero sum times a step of at least 2^-100 is a multiple of 2^-123, and so is its sum with
  // a bias that is not subnormal itself, unless that is tiny against it: no subnormal result.
  for (float s : p.scale) {
    if (s != 0 && !(std::abs(s) >= 0x1p-100f && std::abs(s) <= 0x1p+90f)) return false;
  }
  for (float b : p.bias) {
    if (b != 0 && !(std::abs(b) >= 0x1p-126f && std::abs(b) <= 0x1p+120f)) return false;
  }
  return true;
}

OutKind out_kind(const GemmProblem& problem, at::ScalarType type) {
  switch (type) {
    case at::kInt:
      return OutKind::kInt32;
    case at::kBFloat16:
      return has_native_bfloat16() && bfloat16_stays_normal(problem) ? OutKind::kBFloat16Native
                                                                     : OutKind::kBFloat16;
    case at::kHalf:
      return OutKind::kHalf;
    default:
      return OutKind::kFloat;
  }
}

// What turns sums into results, one entry a padded lane of all groups.
struct FinishArrays {
  std::vector<int32_t> offset;  // [phase][lane]
  std::vector<int64_t> exact_offset;
  std::vector<float> scale;
  std::vector<float> bias;
  int64_t lanes;

  FinishArrays(const GemmProblem& p, int64_t groups, int64_t group_lanes) {
    const int64_t padded = p.weights.padded_lanes;
    lanes = groups * padded;
    scale.assign(lanes, 0.0f);
    if (!p.bias.empty()) bias.assign(lanes, 0.0f);
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t l = 0; l < group_lanes; ++l) {
        scale[g * padded + l] = p.scale.size() == 1 ? p.scale[0] : p.scale[g * group_lanes + l];
        if (!p.bias.empty()) bias[g * padded + l] = p.bias[g * group_lanes + l];
      }
    }
    exact_offset.assign(p.phases.size() * lanes, 0);
    if (p.zero_point != 0) {
      for (size_t i = 0; i < p.phases.size(); ++i) {
        for (size_t t = 0; t < p.phases[i].shifts.size(); ++t) {
          const int64_t* sums = p.weights.sums.data() + (p.phases[i].first_tap + t) * lanes;
          for (int64_t l = 0; l < lanes; ++l) {
            exact_offset[i * lanes + l] += p.zero_point * sums[l];
          }
        }
      }
    }
    // Modulo 2^32, as the sums are: the difference is exact if the true sum fits.
    for (int64_t v : exact_offset) offset.push_back(static_cast<int32_t>(v));
  }
};

// Contractions beyond int32: exact sums in int64, piece by piece. Rare, so plain.
template <typename T>
void long_block(const BlockTask& task, BlockKernel int32_kernel, const int64_t* exact_offset,
                int64_t step_bytes, int64_t vector_bytes) {
  const int64_t padded = round_up(task.lanes, kVector);
  const std::vector<int32_t> no_offset(padded, 0);
  std::vector<int32_t> part(task.pixels * padded);
  std::vector<int64_t> sums(task.pixels * padded, 0);
  std::vector<int64_t> part_at(task.pixels);
  for (int64_t p = 0; p < task.pixels; ++p) part_at[p] = p * padded * sizeof(int32_t);
  const int64_t steps_each = kSafeContraction / 4;
  for (int64_t tap = 0; tap < task.taps; ++tap) {
    for (int64_t step = 0; step < task.steps; step += steps_each) {
      BlockTask piece = task;
      piece.rows = task.rows + tap * task.row_stride;
      piece.taps = 1;
      piece.streaming = false;
      piece.prefetch_results = false;
      piece.rows_are_cold = false;
      piece.channel_offset = task.channel_offset + step * step_bytes;
      piece.steps = std::min(steps_each, task.steps - step);
      piece.panel = task.panel + tap * task.tap_stride + step * vector_bytes;
      piece.finish = {no_offset.data(), nullptr, nullptr};
      piece.out = reinterpret_cast<uint8_t*>(part.data());
      piece.out_at = part_at.data();
      int32_kernel(piece);
      for (size_t i = 0; i < part.size(); ++i) sums[i] += part[i];
    }
  }
  for (int64_t p = 0; p < task.pixels; ++p) {
    T* out = reinterpret_cast<T*>(task.out + task.out_at[p]);
    for (int64_t lane = 0; lane < task.lanes; ++lane) {
      float y = static_cast<float>(sums[p * padded + lane] - exact_offset[lane]);
      y *= task.finish.scale[lane];
      if (task.finish.bias != nullptr) y += task.finish.bias[lane];
      out[lane] = static_cast<T>(y);
    }
  }
}

float rounded_to(at::ScalarType type, float v) {
  if (type == at::kBFloat16) return static_cast<float>(static_cast<c10::BFloat16>(v));
  if (type == at::kHalf) return static_cast<float>(static_cast<c10::Half>(v));
  return v;
}

// Accumulators of LaneStats for each part of the pixels, over the padded lanes of all groups. Parts
// do not depend on the number of threads and are combined in order.
struct StatsParts {
  int64_t lanes = 0;
  std::vector<double> sums;        // [part][sum, squares][lane]
  std::vector<int32_t> extremes;  // [part][least, most][lane]

  void start(int64_t parts, int64_t padded_lanes) {
    lanes = padded_lanes;
    sums.assign(parts * 2 * lanes, 0.0);
    extremes.resize(parts * 2 * lanes);
    for (int64_t part = 0; part < parts; ++part) {
      int32_t* least = extremes.data() + part * 2 * lanes;
      std::fill(least, least + lanes, std::numeric_limits<int32_t>::max());
      std::fill(least + lanes, least + 2 * lanes, std::numeric_limits<int32_t>::min());
    }
  }

  LaneStats of(int64_t part, int64_t lane) {
    double* sum = sums.data() + part * 2 * lanes + lane;
    int32_t* least = extremes.data() + part * 2 * lanes + lane;
    return {sum, sum + lanes, least, least + lanes};
  }

  // Adds up the parts, into the first of them.
  void combine() {
    const int64_t parts = static_cast<int64_t>(sums.size()) / (2 * lanes);
    const LaneStats all = of(0, 0);
    for (int64_t part = 1; part < parts; ++part) {
      const LaneStats s = of(part, 0);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        all.sum[lane] += s.sum[lane];
        all.squares[lane] += s.squares[lane];
        all.least[lane] = std::min(all.least[lane], s.least[lane]);
        all.most[lane] = std::max(all.most[lane], s.most[lane]);
      }
    }
  }
};

class Gemm {
 public:
  Gemm(const GemmProblem& problem, Capability capability, at::Tensor& out, double* stats,
       BlockEpilogue* epilogue)
      : p_(problem),
        capability_(capability),
        type_(out.scalar_type()),
        kind_(out_kind(problem, out.scalar_type())),
        out_(static_cast<uint8_t*>(out.data_ptr())),
        element_(out.element_size()),
        channels_(out.size(1)),
        groups_(p_.weights.blocks.back().group + 1),
        group_lanes_(channels_ / groups_),
        stats_(stats),
        epilogue_(epilogue),
        finish_(problem, groups_, group_lanes_) {
    const int64_t rank = out.dim() - 2;
    for (int64_t a = 0; a < rank; ++a) out_size_[3 - rank + a] = out.size(2 + a);
    planes_ = out.stride(1) != 1 && channels_ != 1;
    streaming_ = !planes_ && !p_.depthwise && element_ == 4 && epilogue_ == nullptr &&
                 out.numel() * element_ >= kStreamingBytes &&
                 group_lanes_ % kVector == 0 && reinterpret_cast<uintptr_t>(out_) % 64 == 0;
  }

  void run(const at::Tensor& out) {
    split(out);
    if (zeros_ == Zeros::kBeforehand) {
      const int64_t bytes = p_.source.n * out_size_[0] * out_size_[1] * out_size_[2] * channels_ *
                            element_;
      at::parallel_for(0, bytes, 65536, [&](int64_t begin, int64_t end) {
        std::memset(out_ + begin, 0, end - begin);
      });
    }
    const int64_t threads =
        std::min<int64_t>(at::get_num_threads(), static_cast<int64_t>(items_.size()));
    std::atomic<int64_t> next{0};
    at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      Rows rows;
      std::vector<uint8_t> scratch;
      int64_t filled = -1;
      for (int64_t i = next++; i < static_cast<int64_t>(items_.size()); i = next++) {
        const Item& item = items_[i];
        const int64_t key = item.phase + item.first_pixel * static_cast<int64_t>(p_.phases.size());
        if (key != filled) {
          rows.fill(p_.source, p_.phases[item.phase], out_size_, item.first_pixel, item.pixels,
                    planes_ ? 1 : channels_ * element_);
          filled = key;
        }
        work(item, rows, scratch);
      }
    });
    if (stats_ != nullptr) finish_stats();
  }

 private:
  // Output pixels that no tap meets (stride above the kernel's size) are zeros. Written apart, they
  // cost as much as computed ones: they are cleared before the others, if possible in the cache.
  enum class Zeros { kNone, kByBlock, kBeforehand };

  // Whether the sum of no products is stored as zero bytes: not -0, NaN or a bias.
  bool untouched_are_zeros() const {
    return p_.bias.empty() && !p_.depthwise &&
           std::all_of(p_.scale.begin(), p_.scale.end(),
                       [](float s) { return std::isfinite(s) && !std::signbit(s); });
  }

  // Blocks of pixels, and of lanes where there are too few pixels for the threads.
  void split(const at::Tensor& out) {
    const int64_t threads = at::get_num_threads();
    const int64_t blocks = static_cast<int64_t>(p_.weights.blocks.size());
    std::vector<int32_t> order(p_.phases.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return p_.phases[a].shifts.size() > p_.phases[b].shifts.size();
    });
    const int64_t with_taps =
        std::count_if(p_.phases.begin(), p_.phases.end(),
                      [](const Phase& phase) { return !phase.shifts.empty(); });
    if (with_taps < static_cast<int64_t>(p_.phases.size()) && untouched_are_zeros()) {
      zeros_ = with_taps == 1 && !planes_ ? Zeros::kByBlock : Zeros::kBeforehand;
    }
    for (int32_t i : order) {
      const Phase& phase = p_.phases[i];
      const int64_t pixels = phase.pixels(p_.source.n);
      if (pixels == 0 || (zeros_ != Zeros::kNone && phase.shifts.empty())) continue;
      const int64_t row = p_.source.pixel_bytes * phase.multiplier[1] * phase.multiplier[2];
      const int64_t size =
          std::clamp<int64_t>(kBlockBytes / std::max<int64_t>(row, 1), 96, kBlockPixels);
      // An equal share for each thread in each round; sums must not depend on their number.
      const int64_t shares = stats_ != nullptr || epilogue_ != nullptr ? 2 : threads;
      const int64_t rounds = (pixels + size * shares - 1) / (size * shares);
      // Whole units of tiles, spread evenly: were each block rounded up, the last one would be
      // short and the threads' shares unequal.
      const int64_t units = (pixels + kRowPadding - 1) / kRowPadding;
      const int64_t pixel_blocks = std::min(units, rounds * shares);
      int64_t lane_parts = 1;
      if (pixel_blocks < threads * 2) {
        lane_parts = std::min(blocks, (threads * 2 + pixel_blocks - 1) / pixel_blocks);
      }
      // Other items' lanes may be there already.
      if (zeros_ == Zeros::kByBlock && lane_parts > 1) zeros_ = Zeros::kBeforehand;
      if (stats_ != nullptr) stats_parts_.start(pixel_blocks, finish_.lanes);
      if (epilogue_ != nullptr) epilogue_->start(out, pixel_blocks);
      for (int64_t block = 0; block < pixel_blocks; ++block) {
        const int64_t first = units * block / pixel_blocks * kRowPadding;
        const int64_t stop = units * (block + 1) / pixel_blocks * kRowPadding;
        for (int64_t part = 0; part < lane_parts; ++part) {
          items_.push_back({i, static_cast<int32_t>(part * blocks / lane_parts),
                            static_cast<int32_t>((part + 1) * blocks / lane_parts), first,
                            std::min(stop, pixels) - first, static_cast<int32_t>(block)});
        }
      }
    }
  }

  void work(const Item& item, const Rows& rows, std::vector<uint8_t>& scratch) {
    const Phase& phase = p_.phases[item.phase];
    const PackedWeights& w = p_.weights;
    std::vector<int64_t> scratch_at;
    if (planes_) {
      scratch_at.resize(item.pixels);
      const int64_t row = kMaxVectors * kVector * element_;
      for (int64_t p = 0; p < item.pixels; ++p) scratch_at[p] = p * row;
      scratch.resize(item.pixels * row);
    }
    BlockTask task;
    task.rows = rows.pointers.data();
    task.row_stride = rows.stride;
    task.pixels = item.pixels;
    task.taps = static_cast<int64_t>(phase.shifts.size());
    task.steps = w.steps;
    task.tap_stride = 0;
    task.streaming = streaming_ && zeros_ != Zeros::kByBlock;
    task.prefetch_results = prefetch_results_ && !task.streaming;
    task.out_at = planes_ ? scratch_at.data() : rows.out_at.data();
    if (zeros_ == Zeros::kByBlock) {
      std::memset(out_ + rows.out_begin, 0, rows.out_end - rows.out_begin);
    }
    for (int32_t b = item.first_block; b < item.last_block; ++b) {
      const LaneBlock& block = w.blocks[b];
      run_block(task, item, block, planes_ ? scratch.data() : nullptr);
      if (!planes_) continue;
      const int64_t lane = block.group * group_lanes_ + block.first;
      const int64_t plane = out_size_[0] * out_size_[1] * out_size_[2];
      store_planes(scratch.data(), kMaxVectors * kVector, item.pixels, block.lanes, element_,
                   rows.out_at.data(), out_, lane, channels_, plane);
    }
    if (epilogue_ != nullptr) {
      // All lanes at once, so that it reads along memory.
      const LaneBlock& first = w.blocks[item.first_block];
      const LaneBlock& last = w.blocks[item.last_block - 1];
      epilogue_->apply(item.part, item.first_pixel, item.first_pixel + item.pixels,
                       first.group * group_lanes_ + first.first,
                       last.group * group_lanes_ + last.first + last.lanes);
    }
  }

  // The task's pixels times one block of lanes, to `scratch` or, if that is null, to their place.
  void run_block(BlockTask& task, const Item& item, const LaneBlock& block, uint8_t* scratch) {
    const Phase& phase = p_.phases[item.phase];
    const PackedWeights& w = p_.weights;
    const int64_t padded_lane = block.group * w.padded_lanes + block.first;
    const int64_t lane = block.group * group_lanes_ + block.first;
    task.panel = w.panels.const_data_ptr<uint8_t>() + block.panel;
    if (p_.depthwise) {
      task.channel_offset = block.first * w.element;
      task.panel += depthwise_phase_offset(capability_, phase.first_tap);
    } else {
      task.channel_offset = block.group * p_.group_channels * w.element;
      task.tap_stride = w.tap_stride(block);
      task.panel += phase.first_tap * task.tap_stride;
    }
    task.lanes = block.lanes;
    task.finish.offset = finish_.offset.data() + item.phase * finish_.lanes + padded_lane;
    task.finish.scale = finish_.scale.data() + padded_lane;
    task.finish.bias = finish_.bias.empty() ? nullptr : finish_.bias.data() + padded_lane;
    task.rows_are_cold = !p_.depthwise && task.taps == 1 && block.first == 0;
    task.out = scratch != nullptr ? scratch : out_ + lane * element_;
    LaneStats stats;
    if (stats_ != nullptr) {
      stats = stats_parts_.of(item.part, padded_lane);
      task.stats = &stats;
    }
    multiply(task, block.vectors,
             finish_.exact_offset.data() + item.phase * finish_.lanes + padded_lane);
  }

  // Statistics by channel; the extremes of the sums become those of the results.
  void finish_stats() {
    stats_parts_.combine();
    for (int64_t c = 0; c < channels_; ++c) {
      const int64_t lane = c / group_lanes_ * p_.weights.padded_lanes + c % group_lanes_;
      const LaneStats s = stats_parts_.of(0, lane);
      const auto result = [&](int32_t exact) {
        float y = static_cast<float>(exact) * finish_.scale[lane];
        if (!finish_.bias.empty()) y += finish_.bias[lane];
        // Only a NaN makes a sum of squares NaN.
        return std::isnan(*s.squares) ? *s.squares : static_cast<double>(rounded_to(type_, y));
      };
      stats_[c] = *s.sum;
      stats_[channels_ + c] = *s.squares;
      stats_[2 * channels_ + c] = result(*s.least);
      stats_[3 * channels_ + c] = result(*s.most);
    }
  }

  void multiply(const BlockTask& task, int64_t vectors, const int64_t* exact_offset) const {
    if (p_.depthwise) {
      depthwise_kernel(capability_, task.taps, kind_, p_.is_signed)(task);
      return;
    }
    const int64_t contraction = task.taps * task.steps * p_.weights.step_channels;
    if (contraction <= kSafeContraction || kind_ == OutKind::kInt32) {
      block_kernel(capability_, vectors, kind_, p_.is_signed)(task);
      return;
    }
    const BlockKernel kernel =
        block_kernel(capability_, vectors, OutKind::kInt32, p_.is_signed);
    const int64_t step_bytes = p_.weights.step_channels * p_.weights.element;
    const int64_t vector_bytes = step_bytes * kVector * vectors;
    if (type_ == at::kFloat) {
      long_block<float>(task, kernel, exact_offset, step_bytes, vector_bytes);
    } else if (type_ == at::kHalf) {
      long_block<c10::Half>(task, kernel, exact_offset, step_bytes, vector_bytes);
    } else {
      long_block<c10::BFloat16>(task, kernel, exact_offset, step_bytes, vector_bytes);
    }
  }

  const GemmProblem& p_;
  Capability capability_;
  at::ScalarType type_;
  OutKind kind_;
  uint8_t* out_;
  int64_t element_;
  int64_t channels_;
  int64_t groups_;
  int64_t group_lanes_;
  double* stats_;
  BlockEpilogue* epilogue_;
  StatsParts stats_parts_;
  FinishArrays finish_;
  Spatial out_size_{1, 1, 1};
  bool streaming_ = false;
  const bool prefetch_results_ = !foresees_strided_stores();
  Zeros zeros_ = Zeros::kNone;
  bool planes_ = false;  // results are contiguous (N, C, *spatial), not channels-last
  std::vector<Item> items_;
};

}  // namespace

RowSource make_source(const at::Tensor& q, Capability capability, const SourceOptions& o) {
  const bool words = !uses_bytes(capability);
  RowSource s;
  const int64_t rank = q.dim() - 2;
  const int64_t channels = q.size(1);
  s.n = q.size(0);
  for (int64_t a = 0; a < rank; ++a) s.size[3 - rank + a] = q.size(2 + a);
  const int64_t element = words ? 2 : 1;
  s.pixel_bytes = channels * element;
  const uint8_t* data = static_cast<const uint8_t*>(q.const_data_ptr());
  const uint8_t pad = static_cast<uint8_t>(words ? 0 : o.zero_point);
  s.pad_row.assign(std::max(o.row_bytes, s.pixel_bytes) + 64, pad);
  if (!words && !o.merge_width) {
    s.data = data;
    const int64_t pixels = s.n * s.size[0] * s.size[1] * s.size[2];
    if (o.row_bytes > s.pixel_bytes && pixels > 0) {
      const uint8_t* last = data + (pixels - 1) * s.pixel_bytes;
      s.last_row.assign(last, last + s.pixel_bytes);
      s.last_row.resize(o.row_bytes + 64, 0);
    }
    return s;
  }
  const int64_t width = s.size[2];
  const int64_t begin = o.merge_width ? o.pad_begin : 0;
  const int64_t end = o.merge_width ? o.pad_end : 0;
  const int64_t lines = s.n * s.size[0] * s.size[1];
  const int64_t line_bytes = (width + begin + end) * s.pixel_bytes;
  s.owner = at::empty({lines * line_bytes + o.row_bytes + 64}, at::kByte);
  uint8_t* copy = s.owner.data_ptr<uint8_t>();
  std::memset(copy + lines * line_bytes, pad, o.row_bytes + 64);
  const int64_t grain = 1 + 65536 / std::max<int64_t>(line_bytes, 1);
  at::parallel_for(0, lines, grain, [&](int64_t a, int64_t b) {
    for (int64_t line = a; line < b; ++line) {
      const uint8_t* from = data + line * width * channels;
      uint8_t* to = copy + line * line_bytes;
      std::memset(to, pad, begin * s.pixel_bytes);
      uint8_t* middle = to + begin * s.pixel_bytes;
      const int64_t values = width * channels;
      if (!words) {
        std::memcpy(middle, from, values);
      } else if (o.is_signed) {
        auto* wide = reinterpret_cast<int16_t*>(middle);
        for (int64_t i = 0; i < values; ++i) wide[i] = static_cast<int8_t>(from[i]);
      } else {
        auto* wide = reinterpret_cast<int16_t*>(middle);
        for (int64_t i = 0; i < values; ++i) {
          wide[i] = static_cast<int16_t>(from[i] - o.zero_point);
        }
      }
      std::memset(middle + values * element, pad, end * s.pixel_bytes);
    }
  });
  s.data = copy;
  s.size[2] = width + begin + end;
  return s;
}

bool takes_stats(const GemmProblem& p, Capability capability, const at::Tensor& out) {
  if (!uses_bytes(capability) || p.depthwise || p.is_signed || p.phases.size() != 1) return false;
  if (out.stride(1) != 1 && out.size(1) != 1) return false;
  if (out.scalar_type() == at::kInt) return false;
  const int64_t taps = static_cast<int64_t>(p.phases[0].shifts.size());
  if (taps * p.weights.steps * p.weights.step_channels > kSafeContraction) return false;
  // Else results are no monotone function of the sums.
  return std::all_of(p.scale.begin(), p.scale.end(),
                     [](float s) { return s >= 0 && std::isfinite(s); });
}

bool takes_epilogue(const GemmProblem& p, const at::Tensor& out) {
  if (p.phases.size() != 1 || p.phases[0].out_step != Spatial{1, 1, 1}) return false;
  if (out.stride(1) != 1 && out.size(1) != 1) return false;
  const int64_t groups = p.weights.blocks.back().group + 1;
  return groups == 1 || out.size(1) / groups % kVector == 0;
}

void run_gemm(const GemmProblem& problem, Capability capability, at::Tensor& out, double* stats,
              BlockEpilogue* epilogue) {
  if (out.numel() == 0) return;
  Gemm(problem, capability, out, stats, epilogue).run(out);
}

}  // namespace daq_mm::cpu
