// Depthwise grad-weight: partial[split][c][tap] = sum over a split's positions of
// (q_x - zero point) * q_g[position][c].
//
// A thread walks down runs of positions of a piece of channels, and sums for up to nine taps: three
// rows of three. For a run it reads gradients and all activations that the taps meet at once, turns
// both into a word a channel of four positions, and multiplies windows of the activations, one for
// each tap along W, by the gradients, four terms an instruction. Activations outside of the image
// read as the zero point, and zero point times the sum of the gradients comes off at the end.

#include <algorithm>

#include "cuda/channel_columns.h"
#include "cuda/depthwise.h"
#include "cuda/depthwise_runs.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = kDepthwiseThreads;
static_assert(kThreads == Columns::kThreads);  // of reduce_columns()

struct DepthwiseGradWeight {
  Global<const uint8_t> q_x;
  Global<const float> qparams;
  Global<const uint8_t> q_g;
  ConvSizes sizes;
  int channels;
  DepthwiseTiles tiles;
  int counts[3];       // of the grid of runs
  GridPosition step;   // from a thread's run to its next one
  int64_t split_runs;
  Global<int32_t> partial;
};

// The activations that three neighbouring taps along W of a run of results meet in a row of the
// image, at a stride of 1 or 2 and neighbouring positions: each residue of the positions modulo the
// stride is a line, and tap t's window starts t / stride positions into line t % stride.
template <int stride>
struct ActivationRow {
  static constexpr int kSpan = (kRun - 1) * stride + kTapsAcross;
  uint32_t word[kSpan];

  // load(i): the word of the i-th position from the first one on.
  template <typename F>
  DAQ_DEVICE ActivationRow(const F& load, int /*step*/, int /*gap*/) {
#pragma unroll
    for (int i = 0; i < kSpan; ++i) word[i] = load(i);
  }
  // Calls f(tap, its window by channel).
  template <typename F>
  DAQ_DEVICE void for_taps(const F& f) const {
    const ByteLine<(kSpan + stride - 1) / stride> even([&](int i) { return word[stride * i]; });
    const ByteLine<kSpan / 2> odd([&](int i) { return word[stride * i + stride - 1]; });
#pragma unroll
    for (int t = 0; t < kTapsAcross; ++t) {
      uint32_t window[kPiece];
#pragma unroll
      for (int c = 0; c < kPiece; ++c) {
        window[c] = t % stride == 0 ? even.window(t / stride, c) : odd.window(t / stride, c);
      }
      f(t, window);
    }
  }
};

// At any stride (`step`) and dilation (`gap`), each tap reads its own.
template <>
struct ActivationRow<0> {
  uint32_t word[kTapsAcross][kRun];

  template <typename F>
  DAQ_DEVICE ActivationRow(const F& load, int step, int gap) {
#pragma unroll
    for (int t = 0; t < kTapsAcross; ++t) {
#pragma unroll
      for (int p = 0; p < kRun; ++p) {
        // 32 bits hold it for all results; beyond them, huge strides wrap, to somewhere outside.
        word[t][p] = load(static_cast<int>(static_cast<uint32_t>(p) * step +
                                           static_cast<uint32_t>(t) * gap));
      }
    }
  }
  template <typename F>
  DAQ_DEVICE void for_taps(const F& f) const {
#pragma unroll
    for (int t = 0; t < kTapsAcross; ++t) {
      f(t, ByteLine<kRun>([&](int p) { return word[t][p]; }).word[0]);
    }
  }
};

// Three rows of three taps: which ones, and the sums of a piece of channels over a thread's runs.
struct TapSums {
  int tap_row[kTapRows];    // of the kernel, its axes d and h taken together; or beyond it
  int offset_d[kTapRows];   // from a result's first source position
  int offset_h[kTapRows];
  int first_w;              // of the taps along W
  int32_t sum[kTapRows][kTapsAcross * kPiece] = {};  // by tap along W, then channel
  int32_t gradients[kPiece] = {};

  DAQ_DEVICE TapSums(const ConvSizes& s, int block) {
    const auto down = static_cast<int>(tap_row_blocks(s));
    first_w = block / down * kTapsAcross;
#pragma unroll
    for (int r = 0; r < kTapRows; ++r) {
      const int row = block % down * kTapRows + r;
      tap_row[r] = row;
      // Rows beyond the kernel are outside of each image.
      offset_d[r] = row < s.kernel[0] * s.kernel[1]
                        ? row / s.kernel[1] * s.dilation[0] - s.pad[0]
                        : -(1 << 30);
      offset_h[r] = row % s.kernel[1] * s.dilation[1] - s.pad[1];
    }
  }
};

// Adds the products of run `p`.
template <int stride, bool whole>
DAQ_DEVICE void add_run(TapSums& sums, const DepthwiseGradWeight& a, const GridPosition& p,
                        const PieceSource<whole>& activations,
                        const PieceSource<whole>& gradients) {
  const ConvSizes& s = a.sizes;
  const int out_w = p.at[2] * kRun;
  const int64_t place =
      p.image * s.out_positions() + place_in_image(p.at[0], p.at[1], out_w, s.out);
  const PieceSource<whole> of_run = gradients.from(place * a.channels);
  uint32_t gradient[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    gradient[i] = of_run.load(int64_t{i} * a.channels, out_w + i < s.out[2]);
  }
  const PieceSource<whole> image = activations.from(p.image * s.in_positions() * a.channels);
  const int at_w = out_w * s.stride[2] - s.pad[2] + sums.first_w * s.dilation[2];
  const auto row_of = [&](int r) {
    const int at_d = p.at[0] * s.stride[0] + sums.offset_d[r];
    const int at_h = p.at[1] * s.stride[1] + sums.offset_h[r];
    const bool inside = at_d >= 0 && at_d < s.in[0] && at_h >= 0 && at_h < s.in[1];
    const int64_t first = place_in_image(at_d, at_h, at_w, s.in);
    const PieceSource<whole> line = image.from(first * a.channels);
    return ActivationRow<stride>(
        [&](int i) {
          const uint32_t there = static_cast<uint32_t>(at_w) + static_cast<uint32_t>(i);
          return line.load(int64_t{i} * a.channels,
                           inside && there < static_cast<uint32_t>(s.in[2]));
        },
        s.stride[2], s.dilation[2]);
  };
  const ByteLine<kRun> g([&](int i) { return gradient[i]; });
#pragma unroll
  for (int c = 0; c < kPiece; ++c) {
    sums.gradients[c] = dot_product(g.word[0][c], four_of(1), sums.gradients[c]);
  }
  const auto add = [&](int r, const ActivationRow<stride>& row) {
    row.for_taps([&](int t, const uint32_t (&window)[kPiece]) {
#pragma unroll
      for (int c = 0; c < kPiece; ++c) {
        int32_t& sum = sums.sum[r][t * kPiece + c];
        sum = dot_product(window[c], g.word[0][c], sum);
      }
    });
  };
  static_assert(kTapRows == 3);
  if constexpr (stride > 0) {
    const ActivationRow<stride> rows[kTapRows] = {row_of(0), row_of(1), row_of(2)};
#pragma unroll
    for (int r = 0; r < kTapRows; ++r) add(r, rows[r]);
  } else {  // there are no registers for so many to wait in
#pragma unroll
    for (int r = 0; r < kTapRows; ++r) add(r, row_of(r));
  }
}

// Adds up the sums of a block's threads, a row of taps at a time, and writes them for its split.
DAQ_DEVICE void store_sums(const DepthwiseGradWeight& a, TapSums& sums, int first_channel,
                           uint32_t zero_point) {
  constexpr int kWidth = kTapsAcross * kPiece;
  const ConvSizes& s = a.sizes;
  const int64_t taps = s.taps();
  const ColumnWalk walk(a.tiles.across, a.tiles.down);
#pragma unroll
  for (int r = 0; r < kTapRows; ++r) {
    if (sums.tap_row[r] >= s.kernel[0] * s.kernel[1]) continue;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {  // activations were 128 less than they are, so zero points
      sums.sum[r][i] -= (static_cast<int32_t>(zero_point) - 128) * sums.gradients[i % kPiece];
    }
    const int64_t first_tap = int64_t{1} * sums.tap_row[r] * s.kernel[2];
    reduce_columns<kWidth>(
        walk, Shared<int32_t>(0, kThreads * kWidth), sums.sum[r], sum_of<int32_t>,
        [&](int i, int32_t value) {
          const int channel = first_channel + i / kWidth * kPiece + i % kPiece;
          const int w = sums.first_w + i % kWidth / kPiece;
          if (channel < a.channels && w < s.kernel[2]) {
            a.partial.store((block_z() * a.channels + channel) * taps + first_tap + w, value);
          }
        });
    barrier();
  }
}

// Grid: x tiles of channels, y blocks of taps, z splits.
template <int stride, bool whole>
DAQ_KERNEL(kThreads, kGradWeightResident)
void depthwise_grad_weight_kernel(DepthwiseGradWeight a) {
  const ConvSizes& s = a.sizes;
  const DepthwiseTiles& t = a.tiles;
  const int column = thread_index() % t.across, slot = thread_index() / t.across;
  const int first_channel = static_cast<int>(block_x()) * t.across * kPiece;
  const int channel = first_channel + column * kPiece;
  const int left = slot < t.down && channel < a.channels ? a.channels - channel : 0;
  const int channels = left < kPiece ? left : kPiece;
  const uint32_t zero_point = source_zero_point(a.qparams);
  const PieceSource<whole> activations{a.q_x.from(channel), channels, kSignBits,
                                       four_of(zero_point) ^ kSignBits};
  const PieceSource<whole> gradients{a.q_g.from(channel), channels, 0u, 0u};

  const int64_t begin = block_z() * a.split_runs;
  const int64_t rest = runs_of_results(s) - begin;
  const auto runs = static_cast<int>(rest < a.split_runs ? rest : a.split_runs);
  const GridPosition first = GridPosition::of(begin + slot, a.counts);
  const auto blocks = static_cast<int>(tap_blocks(s));
  for (auto block = static_cast<int>(block_y()); block < blocks; block += grid_y()) {
    TapSums sums(s, block);
    if (channels > 0) {
      GridPosition p = first;
      for (int run = slot; run < runs; run += t.down) {
        add_run<stride, whole>(sums, a, p, activations, gradients);
        p.advance(a.step, a.counts);
      }
    }
    store_sums(a, sums, first_channel, zero_point);
  }
}

template <int stride, bool whole>
void launch_grad_weight(const DepthwiseGradWeight& a, int64_t splits, Stream stream) {
  constexpr int64_t kMostGrid = 65535;
  const Grid grid{a.tiles.tiles, std::min(tap_blocks(a.sizes), kMostGrid), splits};
  launch(depthwise_grad_weight_kernel<stride, whole>, grid, kThreads,
         kThreads * kTapsAcross * kPiece * sizeof(int32_t), stream, a);
}

}  // namespace

void depthwise_grad_weight(Global<const uint8_t> q_x, Global<const float> qparams,
                           Global<const uint8_t> q_g, const ConvSizes& s, int64_t splits,
                           int64_t split_runs, Global<int32_t> partial, Stream stream) {
  DepthwiseGradWeight a{q_x, qparams, q_g, s, static_cast<int>(s.ci), DepthwiseTiles::of(s.ci),
                        {s.out[0], s.out[1], ceil_div(s.out[2], kRun)}, {}, split_runs, partial};
  a.step = step_of(a.tiles.down, a.counts, s.n);
  const bool whole = s.ci % kPiece == 0 && q_x.is_aligned(kPiece) && q_g.is_aligned(kPiece);
  const bool neighbours = s.dilation[2] == 1 || s.kernel[2] == 1;
  if (!whole) {
    launch_grad_weight<0, false>(a, splits, stream);
  } else if (neighbours && s.stride[2] == 1) {
    launch_grad_weight<1, true>(a, splits, stream);
  } else if (neighbours && s.stride[2] == 2) {
    launch_grad_weight<2, true>(a, splits, stream);
  } else {
    launch_grad_weight<0, true>(a, splits, stream);
  }
}

}  // namespace daq_mm::cuda
