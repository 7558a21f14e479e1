// Rows of all taps for convolutions with few input channels; see grad_weight_positions.h.

#include "cpu/grad_weight_positions.h"

#include <cstring>

namespace daq_mm::cpu {
namespace {

constexpr int64_t kPiece = TapPositions::kRowSlack;

// Copy `bytes` in pieces of a size that the compiler knows: up to a piece more is read and written.
inline void copy_over(uint8_t* to, const uint8_t* from, int64_t bytes) {
  int64_t i = 0;
  do {
    std::memcpy(to + i, from + i, kPiece);
    i += kPiece;
  } while (i < bytes);
}

}  // namespace

TapPositions::RowGather::RowGather(const TapPositions& positions, int64_t channel,
                                   int64_t channels, uint8_t zero_point)
    : geo_(positions.geo_),
      q_x_(positions.q_x_),
      x_end_(positions.q_x_ + geo_.n * geo_.in_positions() * geo_.ci),
      channel_(channel),
      channels_(channels),
      segment_(geo_.kernel[2] * channels),
      zero_point_(zero_point),
      lines_(geo_.kernel[0] * geo_.kernel[1]),
      outside_(segment_ + kPiece, zero_point) {
  // A kernel row's taps are one run of bytes if they are neighbours and all channels are wanted;
  // these output columns see no padding at the sides.
  const bool run = geo_.dilation[2] == 1 && channels == geo_.ci;
  const int64_t pad = geo_.pad_begin[2], stride = geo_.stride[2];
  const int64_t room = geo_.in[2] + pad - geo_.kernel[2];
  whole_begin_ = (pad + stride - 1) / stride;
  whole_end_ = run && room >= 0 ? std::min(room / stride + 1, geo_.out[2]) : whole_begin_;
}

void TapPositions::RowGather::gather(int64_t begin, int64_t end, int64_t row_bytes,
                                     uint8_t* rows) {
  const int64_t width = geo_.out[2];
  for (int64_t row = begin / width; row * width < end; ++row) {
    const int64_t first = std::max(begin - row * width, int64_t{0});
    const int64_t last = std::min(end - row * width, width);
    const bool slack = find_lines(row, last);
    const int64_t from = slack ? std::clamp(whole_begin_, first, last) : last;
    const int64_t to = slack ? std::clamp(whole_end_, from, last) : last;
    tap_by_tap(first, from, row_bytes, rows);
    rows += (from - first) * row_bytes;
    whole_rows(from, to, row_bytes, rows);
    rows += (to - from) * row_bytes;
    tap_by_tap(to, last, row_bytes, rows);
    rows += (last - to) * row_bytes;
  }
}

// Columns [from, to), whose kernel rows are runs of bytes. Locals, because a store of bytes may
// change any member as far as the compiler knows.
void TapPositions::RowGather::whole_rows(int64_t from, int64_t to, int64_t row_bytes,
                                         uint8_t* rows) const {
  const int64_t segment = segment_, step = geo_.stride[2] * geo_.ci;
  const int64_t start = from * step - geo_.pad_begin[2] * geo_.ci;
  for (size_t i = 0; i < lines_.size(); ++i, rows += segment) {
    const bool outside = lines_[i] == nullptr;
    const uint8_t* from_x = outside ? outside_.data() : lines_[i] + start;
    uint8_t* out = rows;
    for (int64_t w = from; w < to; ++w, out += row_bytes) {
      copy_over(out, from_x, segment);
      from_x += outside ? 0 : step;
    }
  }
}

// The lines of x that output row `row` meets, null outside; whether all have kPiece bytes of x
// behind what columns up to `last` need.
bool TapPositions::RowGather::find_lines(int64_t row, int64_t last) {
  const int64_t h = row % geo_.out[1];
  const int64_t d = row / geo_.out[1] % geo_.out[0];
  const int64_t n = row / (geo_.out[1] * geo_.out[0]);
  bool slack = true;
  for (size_t i = 0; i < lines_.size(); ++i) {
    const int64_t kd = static_cast<int64_t>(i) / geo_.kernel[1];
    const int64_t kh = static_cast<int64_t>(i) % geo_.kernel[1];
    const int64_t in_d = d * geo_.stride[0] + kd * geo_.dilation[0] - geo_.pad_begin[0];
    const int64_t in_h = h * geo_.stride[1] + kh * geo_.dilation[1] - geo_.pad_begin[1];
    lines_[i] = nullptr;
    if (in_d < 0 || in_d >= geo_.in[0] || in_h < 0 || in_h >= geo_.in[1]) continue;
    const int64_t x_row = (n * geo_.in[0] + in_d) * geo_.in[1] + in_h;
    lines_[i] = q_x_ + x_row * geo_.in[2] * geo_.ci + channel_;
    slack = slack && x_end_ - lines_[i] >= last * geo_.stride[2] * geo_.ci + segment_ + kPiece;
  }
  return slack;
}

// Columns [from, to), where taps may lie in the padding or apart from each other.
void TapPositions::RowGather::tap_by_tap(int64_t from, int64_t to, int64_t row_bytes,
                                         uint8_t* rows) const {
  for (int64_t w = from; w < to; ++w, rows += row_bytes) {
    uint8_t* out = rows;
    for (const uint8_t* line : lines_) {
      for (int64_t kw = 0; kw < geo_.kernel[2]; ++kw, out += channels_) {
        const int64_t at = w * geo_.stride[2] + kw * geo_.dilation[2] - geo_.pad_begin[2];
        if (line == nullptr || at < 0 || at >= geo_.in[2]) {
          std::memset(out, zero_point_, channels_);
        } else {
          std::memcpy(out, line + at * geo_.ci, channels_);
        }
      }
    }
  }
}

}  // namespace daq_mm::cpu
