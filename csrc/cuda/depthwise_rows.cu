// Depthwise forward and grad-input: result[position][c] = sum over taps of
// (source - zero point) * q_w[c][tap].
//
// A thread computes a run of positions of a piece of channels. At each row of taps it reads the
// words that the run meets, all at once, turns them into a word a channel, and multiplies windows
// of them by the row's taps, four terms an instruction. What lies outside of the image reads as the
// zero point, so that zero point times the sum of all weights is what has to come off.
//
// A block's weights lie in shared memory in the order of use: [row of taps][chunk][channel], a word
// being the up to four taps of a chunk. At most kMostInt32Terms taps: int32 holds the sums.

#include <algorithm>

#include "cuda/depthwise.h"
#include "cuda/depthwise_runs.h"
#include "cuda/primitives/multiprocessors.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = kDepthwiseThreads;
constexpr int kLongRun = 2 * kRun;
constexpr int64_t kWaves = 2;                   // of blocks: many runs share weights and set-up
constexpr int64_t kMostWeightBytes = 46 << 10;  // in shared memory, beside 2 KB of scales
constexpr int kLeastAcross = 8;                 // pieces: memory is read by 32 bytes

// What a launch computes: all of forward, or a phase of grad-input (a residue modulo the stride).
// The host lays it out, so that the kernel reads parameters where it needs them.
struct RowsLaunch {
  DepthwiseArguments a;
  uint32_t flip;       // as PieceSource has it
  int from_size[3];
  int to_size[3];
  int channels;
  AxisMap axis[3];     // source positions ascend with the taps along W
  int counts[3];       // of the grid of runs
  int64_t runs;
  int64_t block_runs;  // neighbouring ones, whose windows overlap
  DepthwiseTiles tiles;
  GridPosition step;   // from a thread's run to its next one
};

// The same taps in the order of the source positions that they meet.
AxisMap ascending(AxisMap m) {
  if (m.shift_step >= 0) return m;
  m.shift += (m.taps - 1) * m.shift_step;
  m.first_tap += (m.taps - 1) * m.tap_step;
  m.shift_step = -m.shift_step;
  m.tap_step = -m.tap_step;
  return m;
}

// Scales and biases of a block's channels, in shared memory: registers are for the sums.
struct ChannelScales {
  Shared<float> scale, bias;

  static constexpr int kBytes = 2 * sizeof(float);  // a channel

  // At the beginning of shared memory.
  DAQ_DEVICE explicit ChannelScales(int tile_channels)
      : scale(0, tile_channels), bias(tile_channels * sizeof(float), tile_channels) {}

  DAQ_DEVICE void fill(const DepthwiseArguments& a, int first_channel, int tile_channels) const {
    const bool offset = !a.qparams.is_null();
    for (int i = thread_index(); i < tile_channels; i += kThreads) {
      const int channel = first_channel + i;
      const bool there = channel < a.sizes.ci;
      const float step = there ? a.step.load(a.step_by_channel ? channel : 0) : 0.0f;
      scale.store(i, offset ? multiply(source_step(a.qparams), step) : step);
      bias.store(i, there && !a.bias.is_null() ? a.bias.load(channel) : 0.0f);
    }
  }
};

// The weights of a block's channels. shared: copied into shared memory; else, where they are too
// many for it, gathered whenever they are needed, which is right and slow.
template <int chunk, bool shared>
struct TapWords {
  const RowsLaunch& launch;
  int first_channel;  // the block's

  DAQ_DEVICE int tile_channels() const { return launch.tiles.across * kPiece; }
  // How many words a channel has.
  DAQ_DEVICE int words() const {
    const AxisMap* axis = launch.axis;
    return axis[0].taps * axis[1].taps * ceil_div(axis[2].taps, chunk);
  }
  // Word i of a channel, from q_w.
  DAQ_DEVICE uint32_t gather(int i, int channel) const {
    const ConvSizes& s = launch.a.sizes;
    const AxisMap &d = launch.axis[0], &h = launch.axis[1], &w = launch.axis[2];
    const int chunks = ceil_div(w.taps, chunk);
    const int row = i / chunks, first = i % chunks * chunk;
    const int64_t tap_row =
        (int64_t{1} * (d.first_tap + row / h.taps * d.tap_step) * s.kernel[1] +
         h.first_tap + row % h.taps * h.tap_step) * s.kernel[2] + w.first_tap;
    uint32_t word = 0;
#pragma unroll
    for (int b = 0; b < chunk; ++b) {
      if (first + b < w.taps && channel < s.ci) {
        const int64_t tap = tap_row + (first + b) * w.tap_step;
        const int8_t value = launch.a.q_w.load(channel * s.taps() + tap);
        word |= static_cast<uint32_t>(static_cast<uint8_t>(value)) << (8 * b);
      }
    }
    return word;
  }
  DAQ_DEVICE Shared<uint32_t> place() const {
    return Shared<uint32_t>(tile_channels() * ChannelScales::kBytes,
                            int64_t{1} * words() * tile_channels());
  }
  DAQ_DEVICE void copy() const {
    const int count = words() * tile_channels();
    for (int i = thread_index(); i < count; i += kThreads) {
      place().store(i, gather(i / tile_channels(), first_channel + i % tile_channels()));
    }
  }
  // Word i of a piece's channels, `column` pieces from the block's first.
  DAQ_DEVICE Bytes16 load(int i, int column) const {
    if constexpr (shared) {
      return place().template load_as<Bytes16>(i * tile_channels() + column * kPiece);
    } else {
      Bytes16 words;
#pragma unroll
      for (int c = 0; c < kPiece; ++c) {
        words.word[c] = gather(i, first_channel + column * kPiece + c);
      }
      return words;
    }
  }
};

// What a thread adds up: sums of the run's positions by channel, and of what the zero point adds.
template <int run>
struct RunSums {
  int32_t sum[run][kPiece] = {};
  int32_t offset[kPiece] = {};

  DAQ_DEVICE int32_t value(int p, int c) const {
    return static_cast<int32_t>(static_cast<uint32_t>(sum[p][c]) -
                                static_cast<uint32_t>(offset[c]));
  }
};

// Adds the products of the chunk of taps that begins with `tap`. multiplier: from a position's
// source position to the next one's, with neighbouring taps meeting neighbouring positions; 0: any,
// each position reads its own. line: the source counted from the first position and tap's on, which
// lies at `at` along W, if its row is inside.
template <int multiplier, int run, int chunk, bool whole>
DAQ_DEVICE void add_chunk(RunSums<run>& sums, const RowsLaunch& l, const PieceSource<whole>& line,
                          int at, bool row_inside, int tap, const Bytes16& weights) {
  const AxisMap& along = l.axis[2];
  const auto word_at = [&](int i, bool tap_inside) {
    const uint32_t there = static_cast<uint32_t>(at) + static_cast<uint32_t>(i);
    const bool inside = tap_inside && there < static_cast<uint32_t>(l.from_size[2]);
    return line.load(int64_t{i} * l.channels, inside);
  };
  const auto add = [&](int p, const auto& bytes, int first) {
#pragma unroll
    for (int c = 0; c < kPiece; ++c) {
      sums.sum[p][c] = dot_product(bytes.window(first, c), weights.word[c], sums.sum[p][c]);
    }
  };
  if constexpr (multiplier > 0) {
    constexpr int kSpan = (run - 1) * multiplier + chunk;
    uint32_t word[kSpan];
#pragma unroll
    for (int i = 0; i < kSpan; ++i) word[i] = word_at(i, row_inside);
    const ByteLine<kSpan> bytes([&](int i) { return word[i]; });
#pragma unroll
    for (int p = 0; p < run; ++p) add(p, bytes, p * multiplier);
  } else {
#pragma unroll
    for (int p = 0; p < run; ++p) {
      uint32_t word[chunk];
#pragma unroll
      for (int t = 0; t < chunk; ++t) {
        // 32 bits hold it for all results; beyond them, huge strides wrap, to somewhere outside.
        const uint32_t i = static_cast<uint32_t>(p) * along.multiplier +
                           static_cast<uint32_t>(t) * along.shift_step;
        word[t] = word_at(static_cast<int>(i), row_inside && tap + t < along.taps);
      }
      add(p, ByteLine<chunk>([&](int t) { return word[t]; }), 0);
    }
  }
#pragma unroll
  for (int c = 0; c < kPiece; ++c) {
    sums.offset[c] = dot_product(line.outside, weights.word[c], sums.offset[c]);
  }
}

// The way of a piece's results to memory.
template <bool whole>
struct PieceResults {
  Results results;
  bool has_bias;
  int channels;  // of the piece
  ChannelScales scales;
  int first;     // channel of the block

  // Positions first, first + step, ... of the run, `count` of them, at results `to` and onwards.
  template <int run>
  DAQ_DEVICE void store(const RunSums<run>& sums, int count, int64_t to, int64_t step) const {
    const auto scale = scales.scale.load_as<Bytes16>(first);
    const auto bias = scales.bias.load_as<Bytes16>(first);
    with_type(results.type, [&](auto type) {
#pragma unroll
      for (int p = 0; p < run; ++p) {
        if (p >= count) continue;
        uint32_t bits[kPiece];
#pragma unroll
        for (int c = 0; c < kPiece; ++c) {
          bits[c] = result_bits_as<type.value>(sums.value(p, c), float_of_bits(scale.word[c]),
                                               has_bias, float_of_bits(bias.word[c]));
        }
        store_piece<type.value>(to + p * step, bits);
      }
    });
  }

 private:
  template <ResultType type>
  DAQ_DEVICE void store_piece(int64_t to, const uint32_t (&bits)[kPiece]) const {
    constexpr bool kWide = type == ResultType::kFloat32 || type == ResultType::kInt32;
    if constexpr (whole && kWide) {
      results.bytes.store_as(to * 4, Bytes16{{bits[0], bits[1], bits[2], bits[3]}});
    } else if constexpr (whole) {
      results.bytes.store_as(to * 2, Bytes8{{bits[0] | bits[1] << 16, bits[2] | bits[3] << 16}});
    } else {
#pragma unroll
      for (int c = 0; c < kPiece; ++c) {
        if (c < channels) results.store(to + c, bits[c]);
      }
    }
  }
};

// Blocks a processor: long runs have more sums.
constexpr int resident(int run, bool shared) { return run == kRun && shared ? 3 : 2; }

// Grid: tiles of channels, blocks of runs.
template <int multiplier, int run, int chunk, bool whole, bool shared>
DAQ_KERNEL(kThreads, resident(run, shared))
void depthwise_rows_kernel(RowsLaunch l) {
  const DepthwiseArguments& a = l.a;
  const AxisMap &axis_d = l.axis[0], &axis_h = l.axis[1], &axis_w = l.axis[2];
  const int tile_channels = l.tiles.across * kPiece;
  const int first_channel = static_cast<int>(block_x() % l.tiles.tiles) * tile_channels;
  const ChannelScales scales(tile_channels);
  scales.fill(a, first_channel, tile_channels);
  const TapWords<chunk, shared> weights{l, first_channel};
  if constexpr (shared) weights.copy();
  barrier();

  const int column = thread_index() % l.tiles.across, slot = thread_index() / l.tiles.across;
  const int channel = first_channel + column * kPiece;
  const int64_t block_run = block_x() / l.tiles.tiles * l.block_runs;
  const int64_t rest = l.runs - block_run;
  const auto runs = static_cast<int>(rest < l.block_runs ? rest : l.block_runs);
  if (slot >= l.tiles.down || channel >= l.channels) return;
  const int left_channels = l.channels - channel;
  const int channels = whole || left_channels >= kPiece ? kPiece : left_channels;
  const uint32_t outside = a.backward ? 0u : four_of(source_zero_point(a.qparams)) ^ l.flip;
  const PieceSource<whole> source{a.source.from(channel), channels, l.flip, outside};
  const PieceResults<whole> results{a.results, !a.bias.is_null(), channels, scales,
                                    column * kPiece};

  const int64_t from_image = int64_t{1} * l.from_size[0] * l.from_size[1] * l.from_size[2];
  const int64_t to_image = int64_t{1} * l.to_size[0] * l.to_size[1] * l.to_size[2];
  GridPosition p = GridPosition::of(block_run + slot, l.counts);
  for (int i = slot; i < runs; i += l.tiles.down) {
    const PieceSource<whole> image = source.from(p.image * from_image * l.channels);
    const int at_w = p.at[2] * run * axis_w.multiplier + axis_w.shift;
    RunSums<run> sums;
    int word = 0;
    for (int d = 0; d < axis_d.taps; ++d) {
      const int at_d = p.at[0] * axis_d.multiplier + axis_d.shift + d * axis_d.shift_step;
      for (int h = 0; h < axis_h.taps; ++h) {
        const int at_h = p.at[1] * axis_h.multiplier + axis_h.shift + h * axis_h.shift_step;
        const bool inside =
            at_d >= 0 && at_d < l.from_size[0] && at_h >= 0 && at_h < l.from_size[1];
        for (int tap = 0; tap < axis_w.taps; tap += chunk) {
          const int at = at_w + tap * axis_w.shift_step;
          const int64_t place = place_in_image(at_d, at_h, at, l.from_size);
          add_chunk<multiplier, run, chunk, whole>(sums, l, image.from(place * l.channels), at,
                                                   inside, tap, weights.load(word++, column));
        }
      }
    }
    const int first_w = p.at[2] * run;
    const int64_t place =
        p.image * to_image + place_in_image(axis_d.start + p.at[0] * axis_d.step,
                                            axis_h.start + p.at[1] * axis_h.step,
                                            axis_w.start + first_w * axis_w.step, l.to_size);
    results.store(sums, axis_w.count - first_w, place * l.channels + channel,
                  int64_t{axis_w.step} * l.channels);
    p.advance(l.step, l.counts);
  }
}

// Words of weights a channel, in the phase with most taps.
int64_t tap_words(const ConvSizes& s, bool backward, int chunk) {
  int64_t taps[3];
  for (int axis = 0; axis < 3; ++axis) {
    taps[axis] = backward ? grad_input_most_taps(s, axis) : s.kernel[axis];
  }
  return taps[0] * taps[1] * ceil_div(taps[2], int64_t{chunk});
}

// How blocks share out channels: fewer each where there are many taps, so that their weights fit
// shared memory, down to where memory would be read in bits.
DepthwiseTiles tiles_of(const ConvSizes& s, int64_t piece_bytes) {
  const int64_t fitting = kMostWeightBytes / piece_bytes;
  return DepthwiseTiles::of(s.ci, static_cast<int>(std::clamp<int64_t>(fitting, kLeastAcross, 64)));
}

// The phase's part of a launch, in runs of `run`; whether it has any results.
bool set_phase(RowsLaunch& l, const ConvMap& map, int run) {
  const int64_t images = l.a.sizes.n;
  for (int axis = 0; axis < 3; ++axis) {
    l.axis[axis] = map.axis[axis];
    l.counts[axis] = map.axis[axis].count;
  }
  l.axis[2] = ascending(map.axis[2]);
  l.counts[2] = ceil_div(l.counts[2], run);
  l.runs = images * l.counts[0] * l.counts[1] * l.counts[2];
  if (l.runs == 0) return false;
  l.step = step_of(l.tiles.down, l.counts, images);
  return true;
}

template <int multiplier, int run, int chunk, bool whole, bool shared = true>
void launch_rows(const DepthwiseArguments& a, Stream stream) {
  const ConvSizes& s = a.sizes;
  const int64_t piece_bytes = tap_words(s, a.backward, chunk) * kPiece * 4;
  RowsLaunch l;
  l.a = a;
  l.flip = a.backward ? 0u : kSignBits;
  std::copy_n(a.backward ? s.out : s.in, 3, l.from_size);
  std::copy_n(a.backward ? s.in : s.out, 3, l.to_size);
  l.channels = static_cast<int>(s.ci);
  l.tiles = tiles_of(s, piece_bytes);
  int64_t bytes = l.tiles.across * kPiece * ChannelScales::kBytes;
  if constexpr (shared) {
    const int64_t weight_bytes = l.tiles.across * piece_bytes;
    if (weight_bytes > kMostWeightBytes) return launch_rows<0, kRun, 4, false, false>(a, stream);
    bytes += weight_bytes;
  }
  const int64_t wanted =
      ceil_div(kWaves * resident(run, shared) * multiprocessors().count, l.tiles.tiles);
  for (int64_t phase = 0; phase < phases(s, a.backward); ++phase) {
    if (!set_phase(l, conv_map(s, a.backward, phase), run)) continue;
    const int64_t rounds = ceil_div(l.runs, l.tiles.down * wanted);
    l.block_runs = rounds * l.tiles.down;
    const Grid grid{l.tiles.tiles * ceil_div(l.runs, l.block_runs)};
    launch(depthwise_rows_kernel<multiplier, run, chunk, whole, shared>, grid, kThreads, bytes,
           stream, l);
  }
}

// Long runs read a position for fewer results, unless they would end beyond the lines too often.
void launch_unit_stride(const DepthwiseArguments& a, int results_across, Stream stream) {
  const int by_long_runs = ceil_div(results_across, kLongRun) * kLongRun;
  const int by_runs = ceil_div(results_across, kRun) * kRun;
  if (3 * int64_t{by_long_runs} <= 4 * int64_t{by_runs}) {
    launch_rows<1, kLongRun, 3, true>(a, stream);
  } else {
    launch_rows<1, kRun, 3, true>(a, stream);
  }
}

}  // namespace

void depthwise_rows(const DepthwiseArguments& a, Stream stream) {
  const AxisMap along = conv_map(a.sizes, a.backward, 0).axis[2];
  const bool whole = a.sizes.ci % kPiece == 0 && a.source.is_aligned(kPiece) &&
                     a.results.bytes.is_aligned(kPiece * result_bytes(a.results.type));
  const bool neighbours =
      a.sizes.kernel[2] == 1 || along.shift_step == 1 || along.shift_step == -1;
  if (!whole) {
    launch_rows<0, kRun, 4, false>(a, stream);
  } else if (neighbours && along.multiplier == 1) {
    launch_unit_stride(a, along.count, stream);
  } else if (neighbours && along.multiplier == 2) {
    launch_rows<2, kRun, 3, true>(a, stream);
  } else {
    launch_rows<0, kRun, 4, true>(a, stream);
  }
}

}  // namespace daq_mm::cuda
