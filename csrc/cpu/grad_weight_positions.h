// Which pixels of x and g meet at one tap of the kernel; used by daq_mm::grad_weight.
//
// The contraction of grad-weight runs over output positions, numbered p = ((n * D + d) * H + h) * W
// + w over the output's sizes. At tap t, position p of g meets pixel p * stride + t * dilation -
// pad_begin of x, or padding. Here a range of positions becomes two lists of pointers, from which
// the packing kernels read: any stride, dilation and padding, 2D and 3D, is a list, and positions
// that meet padding are left out of it (they would add zero).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "conv_geometry.h"

namespace daq_mm::cpu {

class TapPositions {
 public:
  TapPositions(const ConvGeometry& geometry, const uint8_t* q_x, const int8_t* q_g)
      : geo_(geometry), q_x_(q_x), q_g_(q_g) {}

  // Taps are numbered (d * KH + h) * KW + w.
  std::array<int64_t, 3> tap_offset(int64_t tap) const {
    return {tap / (geo_.kernel[1] * geo_.kernel[2]), tap / geo_.kernel[2] % geo_.kernel[1],
            tap % geo_.kernel[2]};
  }

  // Fill x and g with the pixels that meet at `tap` for positions [begin, end); returns their
  // number. With x_outside, positions that meet padding stay and get that pixel.
  int64_t list(int64_t tap, int64_t begin, int64_t end, const uint8_t* x_outside,
               const uint8_t** x, const int8_t** g) const {
    const auto t = tap_offset(tap);
    std::array<int64_t, 3> shift, low, high;  // valid output coordinates: low <= o < high
    for (int a = 0; a < 3; ++a) {
      shift[a] = t[a] * geo_.dilation[a] - geo_.pad_begin[a];
      low[a] = shift[a] >= 0 ? 0 : (-shift[a] + geo_.stride[a] - 1) / geo_.stride[a];
      const int64_t room = geo_.in[a] - 1 - shift[a];
      high[a] = room < 0 ? 0 : std::min(geo_.out[a], room / geo_.stride[a] + 1);
    }
    const int64_t width = geo_.out[2];
    const int64_t x_step = geo_.stride[2] * geo_.ci;
    int64_t count = 0;
    for (int64_t row = begin / width; row * width < end; ++row) {
      const int64_t h = row % geo_.out[1];
      const int64_t d = row / geo_.out[1] % geo_.out[0];
      const int64_t n = row / (geo_.out[1] * geo_.out[0]);
      const int64_t first = std::max(begin - row * width, int64_t{0});
      const int64_t last = std::min(end - row * width, width);
      const bool inside = low[0] <= d && d < high[0] && low[1] <= h && h < high[1];
      if (!inside && x_outside == nullptr) continue;
      const int64_t from = inside ? std::clamp(low[2], first, last) : last;
      const int64_t to = inside ? std::clamp(high[2], from, last) : last;
      const int8_t* g_pixel = q_g_ + row * width * geo_.co;
      const auto outside = [&](int64_t a, int64_t b) {
        if (x_outside == nullptr) return;
        for (int64_t w = a; w < b; ++w, ++count) {
          x[count] = x_outside;
          g[count] = g_pixel + w * geo_.co;
        }
      };
      outside(first, from);
      if (from < to) {
        const int64_t x_row = (n * geo_.in[0] + d * geo_.stride[0] + shift[0]) * geo_.in[1] +
                              h * geo_.stride[1] + shift[1];
        const uint8_t* x_pixel =
            q_x_ + (x_row * geo_.in[2] + from * geo_.stride[2] + shift[2]) * geo_.ci;
        g_pixel += from * geo_.co;
        for (int64_t w = from; w < to; ++w, ++count) {
          x[count] = x_pixel;
          g[count] = g_pixel;
          x_pixel += x_step;
          g_pixel += geo_.co;
        }
        g_pixel -= to * geo_.co;
      }
      outside(to, last);
    }
    return count;
  }

  // Rows of all taps, for convolutions with few input channels.
  class RowGather;
  static constexpr int64_t kRowSlack = 32;  // bytes that may be overwritten behind each row

 private:
  const ConvGeometry& geo_;
  const uint8_t* q_x_;
  const int8_t* q_g_;
};

class TapPositions::RowGather {
 public:
  // Of input channels [channel, channel + channels); padding counts as zero_point.
  RowGather(const TapPositions& positions, int64_t channel, int64_t channels, uint8_t zero_point);

  // Write x as [position][tap][channels] for positions [begin, end), rows row_bytes apart.
  void gather(int64_t begin, int64_t end, int64_t row_bytes, uint8_t* rows);

 private:
  bool find_lines(int64_t row, int64_t last);
  void whole_rows(int64_t from, int64_t to, int64_t row_bytes, uint8_t* rows) const;
  void tap_by_tap(int64_t from, int64_t to, int64_t row_bytes, uint8_t* rows) const;

  const ConvGeometry& geo_;
  const uint8_t* const q_x_;
  const uint8_t* const x_end_;
  const int64_t channel_, channels_, segment_;
  const uint8_t zero_point_;
  int64_t whole_begin_, whole_end_;    // output columns whose kernel rows are runs of bytes
  std::vector<const uint8_t*> lines_;  // of the current output row, one a kernel row
  std::vector<uint8_t> outside_;       // a run of padding
};

}  // namespace daq_mm::cpu
