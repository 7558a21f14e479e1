// Where a block of pixels reads and writes; used by gemm_driver.cpp alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/gemm_driver.h"

namespace daq_mm::cpu {

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Pointers of a block's pixels under each tap, and where each pixel's results go.
class Rows {
 public:
  void fill(const RowSource& source, const Phase& phase, const Spatial& out_size,
            int64_t first_pixel, int64_t pixels, int64_t out_pixel_bytes) {
    stride = round_up(pixels, kRowPadding);
    const int64_t taps = static_cast<int64_t>(phase.shifts.size());
    pointers.resize(std::max<int64_t>(taps * stride, 1));
    out_at.resize(pixels);
    const uint8_t* pad = source.pad_row.data();
    int64_t left = first_pixel;
    Spatial at;  // output indices within the phase
    at[2] = left % phase.count[2];
    left /= phase.count[2];
    at[1] = left % phase.count[1];
    left /= phase.count[1];
    at[0] = left % phase.count[0];
    int64_t image = left / phase.count[0];
    for (int64_t p = 0; p < pixels;) {
      // A run along W, all in one line.
      const int64_t run = std::min(phase.count[2] - at[2], pixels - p);
      const int64_t out = out_position(phase, out_size, image, at);
      for (int64_t i = 0; i < run; ++i) {
        out_at[p + i] = (out + i * phase.out_step[2]) * out_pixel_bytes;
      }
      for (int64_t t = 0; t < taps; ++t) {
        fill_run(source, phase, phase.shifts[t], image, at, run, pad,
                 pointers.data() + t * stride + p);
      }
      p += run;
      at[2] += run;
      for (int a = 2; a >= 0 && at[a] == phase.count[a]; --a) {
        at[a] = 0;
        ++(a == 0 ? image : at[a - 1]);
      }
    }
    const int64_t last_position = source.n * out_size[0] * out_size[1] * out_size[2];
    out_begin = first_pixel == 0 ? 0 : out_at[0];
    out_end = out_pixel_bytes *
              (image == source.n ? last_position : out_position(phase, out_size, image, at));
    for (int64_t t = 0; t < taps; ++t) {
      std::fill(pointers.begin() + t * stride + pixels, pointers.begin() + (t + 1) * stride, pad);
    }
    if (!source.last_row.empty()) {
      const Spatial& in = source.size;
      const uint8_t* last =
          source.data + (source.n * in[0] * in[1] * in[2] - 1) * source.pixel_bytes;
      std::replace(pointers.begin(), pointers.end(), last, source.last_row.data());
    }
  }

  std::vector<const uint8_t*> pointers;
  std::vector<int64_t> out_at;
  int64_t stride = 0;
  // Bytes of the output from the block's first pixel to the next block's first: all of them
  // together are the whole output.
  int64_t out_begin = 0, out_end = 0;

 private:
  static int64_t out_position(const Phase& phase, const Spatial& out_size, int64_t image,
                              const Spatial& at) {
    int64_t out = image;
    for (int a = 0; a < 3; ++a) {
      out = out * out_size[a] + phase.out_start[a] + at[a] * phase.out_step[a];
    }
    return out;
  }

  static void fill_run(const RowSource& source, const Phase& phase, const Spatial& shift,
                       int64_t image, const Spatial& at, int64_t run, const uint8_t* pad,
                       const uint8_t** to) {
    const Spatial& in = source.size;
    const int64_t d = at[0] * phase.multiplier[0] + shift[0];
    const int64_t h = at[1] * phase.multiplier[1] + shift[1];
    if (d < 0 || d >= in[0] || h < 0 || h >= in[1]) {
      std::fill(to, to + run, pad);
      return;
    }
    const int64_t step = phase.multiplier[2];
    const int64_t w = at[2] * step + shift[2];  // of the run's first pixel
    // Pixels first .. last - 1 are inside: 0 <= w + i * step < in[2].
    const int64_t first = std::min(run, w >= 0 ? 0 : (-w + step - 1) / step);
    const int64_t last = std::clamp<int64_t>((in[2] - w + step - 1) / step, first, run);
    std::fill(to, to + first, pad);
    const uint8_t* from =
        source.data + (((image * in[0] + d) * in[1] + h) * in[2] + w) * source.pixel_bytes;
    const int64_t bytes = step * source.pixel_bytes;
    for (int64_t i = first; i < last; ++i) to[i] = from + i * bytes;
    std::fill(to + last, to + run, pad);
  }
};

}  // namespace daq_mm::cpu
