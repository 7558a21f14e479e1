// Depthwise products: result[position][c] = sum over taps of (source - zero point) * q_w[c][tap];
// grad-weight sums over positions instead. Taps outside of the image count as the zero point, so
// they are left out. int32 holds the sums: at most kMostInt32Terms taps, and positions a split.

#include "cuda/depthwise.h"

#include "cuda/conv_tile.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;

// Each thread `width` neighbouring channels (1 or 4) of a position. Grid: x blocks, y phases.
template <int width>
DAQ_KERNEL(kThreads, 2)
void depthwise_kernel(DepthwiseArguments a) {
  const ConvMap map = conv_map(a.sizes, a.backward, block_y());
  const int64_t channels = a.sizes.ci;
  const int64_t pieces = channels / width;
  const int64_t count = a.sizes.n * map.positions() * pieces;
  const int counts[3] = {map.axis[0].count, map.axis[1].count, map.axis[2].count};
  const int* from_size = a.backward ? a.sizes.out : a.sizes.in;
  const int* to_size = a.backward ? a.sizes.in : a.sizes.out;
  const int* kernel = a.sizes.kernel;
  const bool offset = !a.qparams.is_null();
  const float first_step = offset ? source_step(a.qparams) : 1.0f;
  const int zero_point = offset ? static_cast<int>(source_zero_point(a.qparams)) : 0;
  const bool has_bias = !a.bias.is_null();
  for (int64_t i = block_x() * kThreads + thread_index(); i < count; i += grid_x() * kThreads) {
    const int64_t channel = i % pieces * width;
    const auto p = GridPosition::of(i / pieces, counts);
    int64_t to = p.image;
    int origin[3];
    for (int axis = 0; axis < 3; ++axis) {
      const AxisMap& along = map.axis[axis];
      to = to * to_size[axis] + along.start + p.at[axis] * along.step;
      origin[axis] = p.at[axis] * along.multiplier + along.shift;
    }
    int sum[width] = {};
    for (int d = 0; d < map.axis[0].taps; ++d) {
      const int at_d = origin[0] + d * map.axis[0].shift_step;
      if (at_d < 0 || at_d >= from_size[0]) continue;
      const int tap_d = map.axis[0].first_tap + d * map.axis[0].tap_step;
      for (int h = 0; h < map.axis[1].taps; ++h) {
        const int at_h = origin[1] + h * map.axis[1].shift_step;
        if (at_h < 0 || at_h >= from_size[1]) continue;
        const int tap_h = map.axis[1].first_tap + h * map.axis[1].tap_step;
        const int64_t from_row =
            ((p.image * from_size[0] + at_d) * from_size[1] + at_h) * from_size[2];
        for (int w = 0; w < map.axis[2].taps; ++w) {
          const int at_w = origin[2] + w * map.axis[2].shift_step;
          if (at_w < 0 || at_w >= from_size[2]) continue;
          const int tap_w = map.axis[2].first_tap + w * map.axis[2].tap_step;
          const int64_t tap = (int64_t{1} * tap_d * kernel[1] + tap_h) * kernel[2] + tap_w;
          const int64_t from = (from_row + at_w) * channels + channel;
          uint32_t bytes;
          if constexpr (width == 4) {
            bytes = a.source.load_as<uint32_t>(from);
          } else {
            bytes = a.source.load(from);
          }
#pragma unroll
          for (int c = 0; c < width; ++c) {
            const auto byte = static_cast<uint8_t>(bytes >> (8 * c));
            const int value = a.backward ? static_cast<int8_t>(byte) : byte - zero_point;
            sum[c] += value * a.q_w.load((channel + c) * a.sizes.taps() + tap);
          }
        }
      }
    }
#pragma unroll
    for (int c = 0; c < width; ++c) {
      const float step = a.step.load(a.step_by_channel ? channel + c : 0);
      const float scale = offset ? multiply(first_step, step) : step;
      const float bias = has_bias ? a.bias.load(channel + c) : 0.0f;
      a.results.store(to * channels + channel + c,
                      result_bits(sum[c], scale, has_bias, bias, a.results.type));
    }
  }
}

// Block: 32 channels x 8 positions at a time, one tap. Grid: x channels, y taps, z splits.
DAQ_KERNEL(kThreads, 2)
void depthwise_grad_weight_kernel(Global<const uint8_t> q_x, Global<const float> qparams,
                                  Global<const int8_t> q_g, ConvSizes s, int64_t per_split,
                                  Global<int32_t> partial) {
  constexpr int kAtOnce = kThreads / kWarp;
  const Shared<int32_t> shared(0, kThreads);
  const int64_t channel = block_x() * kWarp + lane_index();
  const int zero_point = static_cast<int>(source_zero_point(qparams));
  const int64_t positions = s.n * s.out_positions();
  const int64_t begin = block_z() * per_split;
  const int64_t end = begin + per_split < positions ? begin + per_split : positions;
  const GridPosition step = GridPosition::of(kAtOnce, s.out);
  const int64_t taps = s.taps();
  for (int64_t tap = block_y(); tap < taps; tap += grid_y()) {
    const int tap_at[3] = {static_cast<int>(tap / s.kernel[2] / s.kernel[1]),
                           static_cast<int>(tap / s.kernel[2] % s.kernel[1]),
                           static_cast<int>(tap % s.kernel[2])};
    GridPosition p = GridPosition::of(begin + warp_index(), s.out);
    int32_t sum = 0;
    for (int64_t i = begin + warp_index(); i < end; i += kAtOnce) {
      int64_t from = p.image;
      bool inside = channel < s.ci;
      for (int axis = 0; axis < 3; ++axis) {
        const int at =
            p.at[axis] * s.stride[axis] - s.pad[axis] + tap_at[axis] * s.dilation[axis];
        inside = inside && at >= 0 && at < s.in[axis];
        from = from * s.in[axis] + at;
      }
      if (inside) {
        sum += (q_x.load(from * s.ci + channel) - zero_point) * q_g.load(i * s.co + channel);
      }
      p.advance(step, s.out);
    }
    shared.store(thread_index(), sum);
    barrier();
    if (warp_index() == 0) {
      for (int w = 1; w < kAtOnce; ++w) sum += shared.load(w * kWarp + lane_index());
      if (channel < s.ci) partial.store((block_z() * s.ci + channel) * taps + tap, sum);
    }
    barrier();
  }
}

}  // namespace

void depthwise_rows(const DepthwiseArguments& a, Stream stream) {
  const bool wide = a.sizes.ci % 4 == 0 && a.source.is_aligned(4);
  const int64_t threads = a.sizes.n * conv_map(a.sizes, a.backward, 0).positions() *
                          (wide ? a.sizes.ci / 4 : a.sizes.ci);
  const int64_t blocks = ceil_div(threads, int64_t{kThreads});
  const Grid grid{blocks < kMostBlocks ? blocks : kMostBlocks, phases(a.sizes, a.backward)};
  if (wide) {
    launch(depthwise_kernel<4>, grid, kThreads, 0, stream, a);
  } else {
    launch(depthwise_kernel<1>, grid, kThreads, 0, stream, a);
  }
}

void depthwise_grad_weight(Global<const uint8_t> q_x, Global<const float> qparams,
                           Global<const int8_t> q_g, const ConvSizes& s, int64_t splits,
                           int64_t per_split, Global<int32_t> partial, Stream stream) {
  constexpr int64_t kMostTaps = 65535;
  const int64_t taps = s.taps() < kMostTaps ? s.taps() : kMostTaps;
  launch(depthwise_grad_weight_kernel, Grid{ceil_div(s.ci, int64_t{kWarp}), taps, splits},
         kThreads, kThreads * sizeof(int32_t), stream, q_x, qparams, q_g, s, per_split, partial);
}

}  // namespace daq_mm::cuda
