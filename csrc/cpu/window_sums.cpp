// daq_mm::window_sums: for each tap of a convolution's kernel the sum of the inputs that it meets,
// which is grad-weight of a gradient of ones.
//
//   sums[ci][tap] = (sum over n and output positions p of q_x[n][p * stride + tap - pad][ci] - zp)
//                   * x_step
//
// Most places of an axis are met by the same taps: with stride 1 all but those next to the borders,
// with stride 2 every other one. Lines (of W times C bytes) whose D and H are alike are therefore
// added up first, in one pass over x (byte_sums.h); what is left is small.

#include <algorithm>
#include <map>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "conv_geometry.h"
#include "cpu/byte_sums.h"
#include "cpu/op_checks.h"

namespace daq_mm::cpu {
namespace {

// The places of one axis, by the taps that meet them.
struct Axis {
  std::vector<std::vector<int64_t>> places;  // of each class
  std::vector<std::vector<int64_t>> taps;    // that meet the places of each class
  std::vector<int64_t> met;                  // places that each tap meets

  Axis(const ConvGeometry& g, int axis) : met(g.kernel[axis]) {
    std::map<std::vector<int64_t>, size_t> classes;
    for (int64_t place = 0; place < g.in[axis]; ++place) {
      std::vector<int64_t> meeting;
      for (int64_t tap = 0; tap < g.kernel[axis]; ++tap) {
        const int64_t offset = place + g.pad_begin[axis] - tap * g.dilation[axis];
        if (offset >= 0 && offset % g.stride[axis] == 0 &&
            offset / g.stride[axis] < g.out[axis]) {
          meeting.push_back(tap);
          ++met[tap];
        }
      }
      if (meeting.empty()) continue;
      const auto [found, is_new] = classes.try_emplace(meeting, places.size());
      if (is_new) {
        places.emplace_back();
        taps.push_back(std::move(meeting));
      }
      places[found->second].push_back(place);
    }
  }
};

// A run of the lines of one class, which one int32 accumulator holds the sums of.
struct Part {
  size_t depth, height;  // classes
  std::vector<int64_t> offsets;
};

std::vector<Part> parts_of(const ConvGeometry& g, const Axis& depth, const Axis& height) {
  // Every part costs a pass over its sums; some parts let threads share a class.
  const int64_t lines = g.n * g.in[0] * g.in[1], line = g.in[2] * g.ci;
  const auto most = static_cast<size_t>(std::clamp(lines / 8, int64_t{128}, kMostSumRows));
  std::vector<Part> parts;
  for (size_t d = 0; d < depth.places.size(); ++d) {
    for (size_t h = 0; h < height.places.size(); ++h) {
      parts.push_back({d, h, {}});
      for (int64_t n = 0; n < g.n; ++n) {
        for (const int64_t z : depth.places[d]) {
          for (const int64_t y : height.places[h]) {
            if (parts.back().offsets.size() == most) parts.push_back({d, h, {}});
            parts.back().offsets.push_back(((n * g.in[0] + z) * g.in[1] + y) * line);
          }
        }
      }
    }
  }
  return parts;
}

// Sums of codes, (kernel D, H, W, C).
std::vector<int64_t> tap_sums(const uint8_t* x, const ConvGeometry& g, const Axis (&axes)[3]) {
  const std::vector<Part> parts = parts_of(g, axes[0], axes[1]);
  const int64_t count = static_cast<int64_t>(parts.size()), line = g.in[2] * g.ci;
  const int64_t blocks = (line + kSumColumns - 1) / kSumColumns;
  std::vector<int32_t> lines(count * line);
  at::parallel_for(0, count * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const Part& part = parts[job / blocks];
      const int64_t column = job % blocks * kSumColumns;
      add_bytes(x + column, part.offsets.data(), 0, static_cast<int64_t>(part.offsets.size()),
                std::min(kSumColumns, line - column), lines.data() + job / blocks * line + column);
    }
  });
  std::vector<int64_t> sums(g.taps() * g.ci), row(g.kernel[2] * g.ci);
  for (int64_t p = 0; p < count; ++p) {
    std::fill(row.begin(), row.end(), int64_t{0});
    for (size_t w = 0; w < axes[2].places.size(); ++w) {
      for (const int64_t tap : axes[2].taps[w]) {
        for (const int64_t place : axes[2].places[w]) {
          const int32_t* from = lines.data() + p * line + place * g.ci;
          for (int64_t c = 0; c < g.ci; ++c) row[tap * g.ci + c] += from[c];
        }
      }
    }
    for (const int64_t d : axes[0].taps[parts[p].depth]) {
      for (const int64_t h : axes[1].taps[parts[p].height]) {
        int64_t* to = sums.data() + (d * g.kernel[1] + h) * g.kernel[2] * g.ci;
        for (size_t i = 0; i < row.size(); ++i) to[i] += row[i];
      }
    }
  }
  return sums;
}

at::Tensor window_sums(const at::Tensor& q_x, const at::Tensor& x_qparams, at::IntArrayRef kernel,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  check_spatial_rank(q_x, "q_x");
  check_channels_last(q_x, at::kByte, "q_x");
  check_contiguous(x_qparams, at::kFloat, "x_qparams");
  check_size(x_qparams, {2}, "x_qparams");
  const auto g = ConvGeometry::windows(q_x.sizes(), kernel, stride, padding, dilation);
  const Axis axes[3] = {{g, 0}, {g, 1}, {g, 2}};
  const std::vector<int64_t> codes = tap_sums(q_x.const_data_ptr<uint8_t>(), g, axes);
  const double step = x_qparams.const_data_ptr<float>()[0];
  const double zero_point = x_qparams.const_data_ptr<float>()[1];
  at::Tensor out = at::empty(g.windows_size(), q_x.options().dtype(at::kDouble).memory_format(
                                       at::MemoryFormat::Contiguous));
  double* to = out.mutable_data_ptr<double>();
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    const int64_t met = axes[0].met[tap / g.kernel[2] / g.kernel[1]] *
                        axes[1].met[tap / g.kernel[2] % g.kernel[1]] *
                        axes[2].met[tap % g.kernel[2]] * g.n;
    const double offset = zero_point * static_cast<double>(met);
    for (int64_t c = 0; c < g.ci; ++c) {
      to[c * g.taps() + tap] = (static_cast<double>(codes[tap * g.ci + c]) - offset) * step;
    }
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(daq_mm, CPU, m) { m.impl("window_sums", &window_sums); }

}  // namespace daq_mm::cpu
