// The backward glue's values, computed where a kernel wants them: the gradient before the activation,
// y as it was saved, and the gradient dy of y (glue_backward.cu has the formulas).
#pragma once

#include "cuda/glue.h"
#include "cuda/glue_columns.h"

namespace daq_mm::cuda {

// y as a column's float values: from codes, from the float type, or none.
template <FloatType type>
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

  DAQ_DEVICE bool is_null() const { return y.is_null() && codes.is_null(); }

  struct OfColumn {
    float low[kVector];
    float step[kVector];
  };
  DAQ_DEVICE void of_column(const ColumnWalk& walk, const ColumnPlace& place, OfColumn& c) const {
    if (codes.is_null()) return;
    place.load_channels(grid, 0, c.low);
    place.load_channels(grid, walk.channels, c.step);
  }
  DAQ_DEVICE void load(const ColumnPlace& place, const OfColumn& c, int64_t i,
                       float (&v)[kVector]) const {
    if (codes.is_null()) {
      place.load<type>(y, i, v);
      return;
    }
    place.load_codes(codes, i, v);
#pragma unroll
    for (int k = 0; k < kVector; ++k) v[k] = add(c.low[k], multiply(v[k], c.step[k]));
  }
};

// The gradient before the activation.
template <FloatType type>
struct MaskedGradient {
  FloatSource<type> g;
  FloatSource<type> g2;
  Global<const uint8_t> mask;

  MaskedGradient(const void* g_, const void* g2_, const uint8_t* mask_, const GlueSize& size)
      : g(source_of<type>({g_, size.count(), type})) {
    if (g2_ != nullptr) g2 = source_of<type>({g2_, size.count(), type});
    if (mask_ != nullptr) mask = {mask_, size.mask_bytes()};
  }

  DAQ_DEVICE void load(const ColumnWalk& walk, const ColumnPlace& place, int64_t row,
                       float (&v)[kVector]) const {
    const int64_t i = row * walk.channels + place.channel;
    place.load<type>(g, i, v);
    if (!g2.is_null()) {
      float more[kVector];
      place.load<type>(g2, i, more);
#pragma unroll
      for (int k = 0; k < kVector; ++k) v[k] = rounded_to<type>(add(v[k], more[k]));
    }
    if (mask.is_null()) return;
    const int64_t columns = (walk.channels + kVector - 1) / kVector;
    const uint32_t bits = mask.load(row * columns + place.channel / kVector);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if ((bits >> k & 1u) == 0) v[k] = 0.0f;
    }
  }
};

// dy of a column's values.
template <FloatType type>
struct Backward {
  MaskedGradient<type> gradient;
  YHat<type> y;
  Global<const float> coefficients;

  Backward(const NormBackward& a, const GlueSize& size)
      : gradient(a.g, nullptr, a.mask, size),
        y(a.y, a.grid, size),
        coefficients(a.coefficients, 3 * size.channels) {}

  struct OfColumn {
    float a[kVector];
    float b[kVector];
    float c[kVector];
    typename YHat<type>::OfColumn y;
  };
  DAQ_DEVICE void of_column(const ColumnWalk& walk, const ColumnPlace& place, OfColumn& c) const {
    place.load_channels(coefficients, 0, c.a);
    place.load_channels(coefficients, walk.channels, c.b);
    place.load_channels(coefficients, 2 * walk.channels, c.c);
    y.of_column(walk, place, c.y);
  }
  // As it would be read again after a store.
  DAQ_DEVICE void load(const ColumnWalk& walk, const ColumnPlace& place, const OfColumn& c,
                       int64_t row, float (&dy)[kVector]) const {
    float x[kVector];
    gradient.load(walk, place, row, dy);
    if (!y.is_null()) y.load(place, c.y, row * walk.channels + place.channel, x);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      dy[k] = multiply(c.a[k], dy[k]);
      if (!y.is_null()) dy[k] = add(dy[k], multiply(c.b[k], x[k]));
      dy[k] = rounded_to<type>(add(dy[k], c.c[k]));
    }
  }
};

}  // namespace daq_mm::cuda
