// Backward glue: norm_act_reduce, norm_backward_apply, _maxima and _quantize of glue.h.
//
//   gz = g [+ g2, rounded] where the mask passes it, else 0;  y_hat = low + code * step, or y
//   sums of gz and gz * (y_hat - mean) * invstd
//   dy = a * gz + b * y_hat + c, rounded to the float type; its maxima, or its 8-bit form
//
// The gradient that the next convolution's products need exists only as bytes: its maxima are found
// by one pass that computes dy, and the bytes by another one that computes it again.

#include "cuda/glue.h"
#include "cuda/glue_gradient.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = Columns::kThreads;

// What norm_act_reduce adds up, and of what: see glue.h.
template <FloatType type, bool vectors>
struct Reduced {
  MaskedGradient<type, vectors> gradient;
  FloatSource<type> g2;      // or null
  YHat<type, vectors> y;
  Global<const float> mean;  // or null
  Global<const float> invstd;

  Reduced(const NormActReduce& a, const GlueSize& size)
      : gradient(a.g, a.mask, size), y(a.y, a.grid, size) {
    if (a.g2 != nullptr) g2 = source_of<type>({a.g2, size.count(), type});
    if (a.mean == nullptr) return;
    mean = {a.mean, size.channels};
    invstd = {a.invstd, size.channels};
  }

  struct Words {
    typename MaskedGradient<type, vectors>::Words gradient;
    ColumnWords<type, vectors> g2;
    typename YHat<type, vectors>::Words y;
  };
  DAQ_DEVICE void load_if(bool wanted, const ColumnWalk& walk, const ColumnPlace<vectors>& place,
                          int64_t row, int64_t i, Words& words) const {
    gradient.load_if(wanted, walk, place, row, i, words.gradient);
    words.g2.load_if(wanted && !g2.is_null(), place, g2, i);
    y.load_if(wanted && !mean.is_null(), place, i, words.y);
  }
  // The gradient before the activation.
  DAQ_DEVICE void unpack(const Words& words, float (&v)[kVector]) const {
#pragma unroll
    for (int k = 0; k < kVector; ++k) v[k] = words.gradient.g.value(k);
    if (!g2.is_null()) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) v[k] = rounded_to<type>(add(v[k], words.g2.value(k)));
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k) v[k] = gradient.masked(v[k], words.gradient, k);
  }
};

// partials (2, channels, parts).
template <FloatType type, bool vectors>
DAQ_KERNEL(kThreads, vectors ? 2 : 1)
void reduce_kernel(Reduced<type, vectors> reduced, FloatTarget<type> gz, ColumnWalk walk,
                   Global<double> partials) {
  using Words = typename Reduced<type, vectors>::Words;
  constexpr int kAhead = vectors && type == FloatType::float32 ? 1 : 2;  // what registers allow
  const ColumnPlace<vectors> place(walk);
  ChunkedSums<2> sums;
  if (place.count > 0) {
    const auto load = [&](bool wanted, int64_t row, int64_t i, Words& words) {
      reduced.load_if(wanted, walk, place, row, i, words);
    };
    auto rows = rows_ahead<kAhead, Words>(walk, place.channel, load);
    typename YHat<type, vectors>::OfColumn of_y;
    float m[kVector], s[kVector];
    const bool norm = !reduced.mean.is_null();
    if (norm) {
      reduced.y.of_column(walk, place, of_y);
      place.load_channels(reduced.mean, 0, m);
      place.load_channels(reduced.invstd, 0, s);
    }
    rows.for_each([&](int64_t, int64_t i, const Words& words) {
      sums.next_row();
      float v[kVector];
      reduced.unpack(words, v);
      if (!gz.is_null()) place.template store<type>(gz, i, v);
#pragma unroll
      for (int k = 0; k < kVector; ++k) sums.add_to(0, k, v[k]);
      if (!norm) return;
      reduced.y.for_values(of_y, words.y, [&](int k, float x) {
        x = multiply(subtract(x, m[k]), s[k]);
        sums.add_to(1, k, multiply(v[k], x));
      });
    });
  }
  const int64_t first = block_y() * walk.across * kVector;
  sums.finish(walk, [&](int which, int i, double value) {
    if (first + i >= walk.channels) return;
    partials.store((which * walk.channels + first + i) * walk.parts + block_x(), value);
  });
}

template <FloatType type, bool vectors>
DAQ_KERNEL(kThreads, 2)
void apply_kernel(Backward<type, vectors> backward, ColumnWalk walk, FloatTarget<type> dy) {
  const ColumnPlace<vectors> place(walk);
  if (place.count == 0) return;
  backward.for_rows(walk, place, [] {}, [&](int64_t i, const float (&v)[kVector]) {
    place.template store<type>(dy, i, v);
  });
}

// maxima: bits of (channels + 1) absolute maxima, the last one of all.
template <FloatType type, bool vectors>
DAQ_KERNEL(kThreads, 2)
void maxima_kernel(Backward<type, vectors> backward, ColumnWalk walk, Global<uint32_t> maxima) {
  const ColumnPlace<vectors> place(walk);
  uint32_t most[kVector] = {};
  if (place.count > 0) {
    backward.for_rows(walk, place, [] {}, [&](int64_t, const float (&v)[kVector]) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) most[k] = larger(most[k], bits_of(v[k]) & ~kSignBit);
    });
  }
  const int64_t first = block_y() * walk.across * kVector;
  uint32_t of_all = 0;
  reduce_columns<kVector>(walk, Shared<uint32_t>(0, kThreads * kVector), most, larger,
                          [&](int i, uint32_t value) {
                            if (first + i >= walk.channels) return;
                            atomic_max(maxima, first + i, value);
                            of_all = larger(of_all, value);
                          });
  of_all = reduce_warp(of_all, larger);
  if (lane_index() == 0 && of_all > 0) atomic_max(maxima, walk.channels, of_all);
}

template <FloatType type, bool vectors>
DAQ_KERNEL(kThreads, 2)
void quantize_kernel(Backward<type, vectors> backward, ColumnWalk walk,
                     Global<const float> threshold, bool by_channel, Global<const int64_t> seed,
                     Global<uint8_t> q) {
  const ColumnPlace<vectors> place(walk);
  if (place.count == 0) return;
  const GradientRounding rounding(seed);
  float inverse[kVector];
  const auto prepare = [&] {  // all loads before the divisions, which have branches
    float s[kVector];
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      s[k] = threshold.load(by_channel && place.has(k) ? place.channel + k : 0);
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k) inverse[k] = inverse_step(s[k], kSignedLevels);
  };
  backward.for_rows(walk, place, prepare, [&](int64_t i, const float (&v)[kVector]) {
    uint32_t b[kVector];
    rounding.quantize<vectors>(v, inverse, i, b);
    place.store_codes(q, i, b);
  });
}

}  // namespace

int64_t norm_act_reduce_workspace(const GlueSize& size) {
  return 2 * size.channels * glue_columns(size).parts * sizeof(double);
}

void norm_act_reduce(const NormActReduce& a, const GlueSize& size, void* workspace,
                     Stream stream) {
  if (size.count() == 0) {
    clear(a.sums, 2 * size.channels * sizeof(double), stream);
    return;
  }
  const Columns columns = glue_columns(size);
  double* partials = static_cast<double*>(workspace);
  const int64_t entries = 2 * size.channels;
  const bool vectors = all_aligned(size, a.g, a.g2, a.y, a.gz);
  with_column_type(size, vectors, [&](auto type, auto by_vectors) {
    launch(reduce_kernel<type(), by_vectors()>, columns.grid, kThreads, ChunkedSums<2>::kBytes,
           stream, Reduced<type(), by_vectors()>(a, size),
           a.gz == nullptr ? FloatTarget<type()>() : target_of<type()>(a.gz, size.count()),
           ColumnWalk(columns), Global<double>(partials, entries * columns.parts));
  });
  combine_parts(partials, entries, columns.parts, a.sums, stream);
}

void norm_backward_apply(const NormBackward& a, const GlueSize& size, void* dy, Stream stream) {
  if (size.count() == 0) return;
  const Columns columns = glue_columns(size);
  const bool vectors = all_aligned(size, a.g, a.y, dy);
  with_column_type(size, vectors, [&](auto type, auto by_vectors) {
    launch(apply_kernel<type(), by_vectors()>, columns.grid, kThreads, 0, stream,
           Backward<type(), by_vectors()>(a, size), ColumnWalk(columns),
           target_of<type()>(dy, size.count()));
  });
}

void norm_backward_maxima(const NormBackward& a, const GlueSize& size, float* maxima,
                          Stream stream) {
  clear(maxima, (size.channels + 1) * sizeof(float), stream);
  if (size.count() == 0) return;
  const Columns columns = glue_columns(size);
  with_column_type(size, all_aligned(size, a.g, a.y), [&](auto type, auto by_vectors) {
    launch(maxima_kernel<type(), by_vectors()>, columns.grid, kThreads,
           kThreads * kVector * sizeof(uint32_t), stream, Backward<type(), by_vectors()>(a, size),
           ColumnWalk(columns),
           Global<uint32_t>(reinterpret_cast<uint32_t*>(maxima), size.channels + 1));
  });
}

void norm_backward_quantize(const NormBackward& a, const GlueSize& size, const float* threshold,
                            int64_t thresholds, const int64_t* seed, int8_t* q, Stream stream) {
  if (size.count() == 0) return;
  const Columns columns = glue_columns(size);
  const bool vectors = all_aligned(size, a.g, a.y, q);
  with_column_type(size, vectors, [&](auto type, auto by_vectors) {
    launch(quantize_kernel<type(), by_vectors()>, columns.grid, kThreads, 0, stream,
           Backward<type(), by_vectors()>(a, size), ColumnWalk(columns),
           Global<const float>(threshold, thresholds), thresholds > 1,
           seed == nullptr ? Global<const int64_t>() : Global<const int64_t>(seed, 1),
           Global<uint8_t>(reinterpret_cast<uint8_t*>(q), size.count()));
  });
}

}  // namespace daq_mm::cuda
