// The backward glue's values, computed where a kernel wants them: the gradient before the activation,
// y as it was saved, and the gradient dy of y (glue_backward.cu has the formulas). Each is loaded as
// words (load_if), ahead of the row that makes values of them.
#pragma once

#include "cuda/glue.h"
#include "cuda/glue_columns.h"

namespace daq_mm::cuda {

// y as a column's float values: from codes, from the float type, or none.
template <FloatType type, bool vectors>
struct YHat {
  FloatSource<type> y;
  Global<const uint8_t> codes;
  Global<const float> grid;  // (2, channels)

  YHat(const void* data, const float* grid_, const GlueSize& size) {
    if (data == nullptr) return;
    if (grid_ == nullptr) {
      y = source_of<type>({data, size.count(), type});
    } else {
      codes = {static_cast<const uint8_t*>(data), size.count()};
      grid = {grid_, 2 * size.channels};
    }
  }

  struct OfColumn {
    float low[kVector];
    float step[kVector];
  };
  DAQ_DEVICE void of_column(const ColumnWalk& walk, const ColumnPlace<vectors>& place,
                            OfColumn& c) const {
    if (codes.is_null()) return;
    place.load_channels(grid, 0, c.low);
    place.load_channels(grid, walk.channels, c.step);
  }
  // Both kinds, though there is one at most: the second load into a register waits for the first one.
  struct Words {
    ColumnCodes<vectors> codes;
    ColumnWords<type, vectors> y;
  };
  DAQ_DEVICE void load_if(bool wanted, const ColumnPlace<vectors>& place, int64_t i,
                          Words& words) const {
    words.codes.load_if(wanted && !codes.is_null(), place, codes, i);
    words.y.load_if(wanted && !y.is_null(), place, y, i);
  }
  // Calls f(k, value) for a column's values, if there are any.
  template <typename F>
  DAQ_DEVICE void for_values(const OfColumn& c, const Words& words, const F& f) const {
    if (!codes.is_null()) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) f(k, add(c.low[k], multiply(words.codes.value(k), c.step[k])));
    } else if (!y.is_null()) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) f(k, words.y.value(k));
    }
  }
};

// The gradient before the activation.
template <FloatType type, bool vectors>
struct MaskedGradient {
  FloatSource<type> g;
  Global<const uint8_t> mask;

  MaskedGradient(const void* g_, const uint8_t* mask_, const GlueSize& size)
      : g(source_of<type>({g_, size.count(), type})) {
    if (mask_ != nullptr) mask = {mask_, size.mask_bytes()};
  }

  struct Words {
    ColumnWords<type, vectors> g;
    uint32_t mask = 0xffu;  // all pass where there is none
  };
  DAQ_DEVICE void load_if(bool wanted, const ColumnWalk& walk, const ColumnPlace<vectors>& place,
                          int64_t row, int64_t i, Words& words) const {
    words.g.load_if(wanted, place, g, i);
    mask.load_if<1>(wanted && !mask.is_null(), place.of_mask(walk, row, i), &words.mask);
  }
  static DAQ_DEVICE float masked(float v, const Words& words, int k) {
    return (words.mask >> k & 1u) == 0 ? 0.0f : v;
  }
};

// dy of a column's values.
template <FloatType type, bool vectors>
struct Backward {
  using Gradient = MaskedGradient<type, vectors>;
  using Y = YHat<type, vectors>;

  Gradient gradient;
  Y y;
  Global<const float> coefficients;

  Backward(const NormBackward& a, const GlueSize& size)
      : gradient(a.g, a.mask, size),
        y(a.y, a.grid, size),
        coefficients(a.coefficients, 3 * size.channels) {}

  struct OfColumn {
    float a[kVector];
    float b[kVector];
    float c[kVector];
    typename Y::OfColumn y;
  };
  DAQ_DEVICE void of_column(const ColumnWalk& walk, const ColumnPlace<vectors>& place,
                            OfColumn& c) const {
    place.load_channels(coefficients, 0, c.a);
    place.load_channels(coefficients, walk.channels, c.b);
    place.load_channels(coefficients, 2 * walk.channels, c.c);
    y.of_column(walk, place, c.y);
  }

  struct Words {
    typename Gradient::Words gradient;
    typename Y::Words y;
  };
  // Calls use(i, dy) for this thread's rows, i as RowsAhead has it, dy as it would be read again
  // after a store; prepare() comes before, when the first loads have left. `ahead` rows are in flight.
  template <int ahead = kRowsAhead<type, vectors>, typename prepare_t, typename use_t>
  DAQ_DEVICE void for_rows(const ColumnWalk& walk, const ColumnPlace<vectors>& place,
                           const prepare_t& prepare, const use_t& use) const {
    const auto load = [&](bool wanted, int64_t row, int64_t i, Words& words) {
      gradient.load_if(wanted, walk, place, row, i, words.gradient);
      y.load_if(wanted, place, i, words.y);
    };
    auto rows = rows_ahead<ahead, Words>(walk, place.channel, load);
    OfColumn c;
    of_column(walk, place, c);
    prepare();
    rows.for_each([&](int64_t, int64_t i, const Words& words) {
      float dy[kVector];
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const float v = words.gradient.g.value(k);
        dy[k] = multiply(c.a[k], Gradient::masked(v, words.gradient, k));
      }
      y.for_values(c.y, words.y, [&](int k, float x) { dy[k] = add(dy[k], multiply(c.b[k], x)); });
#pragma unroll
      for (int k = 0; k < kVector; ++k) dy[k] = rounded_to<type>(add(dy[k], c.c[k]));
      use(i, dy);
    });
  }
};

}  // namespace daq_mm::cuda
