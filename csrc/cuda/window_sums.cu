// For each tap of a convolution's kernel the sum of the inputs that it meets: window_sums of
// dropped_mean.h.
//
//   sums[ci][tap] = (sum over n and output positions p of q_x[n][p * stride + tap - pad][ci] - zp)
//                   * x_step
//
// Two steps. The lines of memory, W times Ci bytes, that the taps (d, h) meet are added up as they
// lie: codes[d, h][w][ci], exact, int32 in a block and 64 bits beyond. Then a tap's sum is one over
// the places w that it meets. Blocks of one part of the memory follow each other for all (d, h), so
// that all but the first find it in the L2 cache.

#include <algorithm>

#include "cuda/byte_columns.h"
#include "cuda/dropped_mean.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = Columns::kThreads;
constexpr int64_t kPieceLines = 64;       // lines of a plane (n, d) that a block sums at a time
constexpr int64_t kMostPieces = 1 << 16;  // of a block: int32 holds 2^22 * 255
constexpr int64_t kBlocks = 2048;         // that are launched, if there are so many pieces
constexpr int64_t kMostParts = 65535;
constexpr int kRows = kThreads / kWarp;   // places that a block of the second step adds at a time

// The places of an axis that a tap meets: first, first + step, ...
struct Met {
  int count;
  int first;
  int step;

  DAQ_BOTH Met(const ConvSizes& s, int axis, int tap) {
    step = s.stride[axis];
    const int64_t shift = int64_t{1} * tap * s.dilation[axis] - s.pad[axis];
    const int64_t begin = shift < 0 ? (step - 1 - shift) / step : 0;
    const int64_t last = s.in[axis] - 1 - shift;
    int64_t end = last < 0 ? 0 : last / step + 1;
    if (end > s.out[axis]) end = s.out[axis];
    count = begin < end ? static_cast<int>(end - begin) : 0;
    first = static_cast<int>(begin * step + shift);
  }
};

// How the first step cuts its work. Grid: x (taps (d, h), then columns of lines; taps fastest), y
// parts.
struct LineSums {
  int64_t line;    // bytes
  int64_t pieces;  // of a plane; the largest tap's
  int64_t most;    // pieces of all planes, at most
  Columns columns;
  int64_t blocks_across;
  int64_t parts;

  LineSums(const ConvSizes& s, const uint8_t* q_x)
      : line(s.in[2] * s.ci),
        pieces(ceil_div(int64_t{std::min(s.in[1], s.out[1])}, kPieceLines)),
        most(s.n * std::min(s.in[0], s.out[0]) * pieces),
        columns(1, line, byte_vectors(q_x, line), 1),
        blocks_across(columns.grid.y) {
    const int64_t others = blocks_across * s.kernel[0] * s.kernel[1];
    const int64_t wanted = std::clamp(kBlocks / others, int64_t{1}, most);
    parts = std::min(std::max(wanted, ceil_div(most, kMostPieces)), kMostParts);
  }
};

template <int width>
DAQ_KERNEL(kThreads, 4)
void lines_kernel(ConvSizes s, Global<const uint8_t> q_x, ColumnWalk walk, int64_t plane_pieces,
                  int64_t parts, Global<Counter> codes) {
  const int64_t taps = int64_t{1} * s.kernel[0] * s.kernel[1];
  const auto tap = static_cast<int>(block_x() % taps);
  const Met d(s, 0, tap / s.kernel[1]), h(s, 1, tap % s.kernel[1]);
  const int64_t across = block_x() / taps * walk.across * width;  // the block's first byte
  const int64_t line = walk.channels, plane = s.in[1] * line;
  const int64_t pieces = s.n * d.count * plane_pieces;
  const int64_t begin = pieces * block_y() / parts, end = pieces * (block_y() + 1) / parts;
  const int64_t byte = across + thread_index() % walk.across * width;
  int32_t total[width] = {};
  if (thread_index() < walk.across * walk.down && byte < line) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t of_d = piece / plane_pieces;
      const int64_t image = of_d / d.count, depth = d.first + of_d % d.count * d.step;
      const int64_t base = (image * s.in[0] + depth) * plane + byte;
      const int64_t from = piece % plane_pieces * kPieceLines;
      const int64_t to = from + kPieceLines < h.count ? from + kPieceLines : h.count;
#pragma unroll 4
      for (int64_t i = from + thread_index() / walk.across; i < to; i += walk.down) {
        add_bytes<uint8_t, width>(q_x, base + (h.first + i * h.step) * line, total);
      }
    }
  }
  reduce_columns<width>(walk, Shared<int32_t>(0, kThreads * width), total, sum_of<int32_t>,
                        [&](int i, int32_t value) {
                          if (across + i >= line || value == 0) return;
                          atomic_add(codes, tap * line + across + i,
                                     static_cast<Counter>(value));
                        });
}

// A block 32 channels of one tap; grid: x channels, y taps.
DAQ_KERNEL(kThreads, 4)
void places_kernel(ConvSizes s, Global<const Counter> codes, Global<const float> qparams,
                   Global<double> sums) {
  const Shared<Counter> scratch(0, kThreads);
  const int64_t taps = s.taps();
  const int64_t channel = block_x() * kWarp + lane_index();
  for (int64_t tap = block_y(); tap < taps; tap += grid_y()) {
    const int64_t of_lines = tap / s.kernel[2];
    const Met w(s, 2, static_cast<int>(tap % s.kernel[2]));
    Counter total = 0;
    if (channel < s.ci) {
      for (int i = warp_index(); i < w.count; i += kRows) {
        const int64_t place = w.first + int64_t{1} * i * w.step;
        total += codes.load((of_lines * s.in[2] + place) * s.ci + channel);
      }
    }
    scratch.store(thread_index(), total);
    barrier();
    if (warp_index() == 0 && channel < s.ci) {
      for (int row = 1; row < kRows; ++row) total += scratch.load(row * kWarp + lane_index());
      const Met d(s, 0, static_cast<int>(of_lines / s.kernel[1]));
      const Met h(s, 1, static_cast<int>(of_lines % s.kernel[1]));
      const int64_t met = s.n * d.count * h.count * w.count;
      const double offset = static_cast<double>(qparams.load(1)) * static_cast<double>(met);
      sums.store(channel * taps + tap, (static_cast<double>(total) - offset) *
                                           static_cast<double>(qparams.load(0)));
    }
    barrier();
  }
}

int64_t line_values(const ConvSizes& s) {
  return int64_t{1} * s.kernel[0] * s.kernel[1] * s.in[2] * s.ci;
}

}  // namespace

int64_t window_sums_workspace(const ConvSizes& s) { return line_values(s) * sizeof(Counter); }

void window_sums(const ConvSizes& s, const uint8_t* q_x, const float* x_qparams, void* workspace,
                 double* sums, Stream stream) {
  const LineSums lines(s, q_x);
  auto* const codes = static_cast<Counter*>(workspace);
  clear(codes, window_sums_workspace(s), stream);
  const auto kernel = lines.columns.width == 1 ? lines_kernel<1> : lines_kernel<kVector>;
  launch(kernel, Grid{lines.blocks_across * s.kernel[0] * s.kernel[1], lines.parts}, kThreads,
         kThreads * lines.columns.width * sizeof(int32_t), stream, s,
         Global<const uint8_t>(q_x, s.n * s.in_positions() * s.ci), ColumnWalk(lines.columns),
         lines.pieces, lines.parts, Global<Counter>(codes, line_values(s)));
  launch(places_kernel,
         Grid{ceil_div(s.ci, int64_t{kWarp}), std::min(s.taps(), kMostParts)}, kThreads,
         kThreads * sizeof(Counter), stream, s,
         Global<const Counter>(codes, line_values(s)), Global<const float>(x_qparams, 2),
         Global<double>(sums, s.ci * s.taps()));
}

}  // namespace daq_mm::cuda
