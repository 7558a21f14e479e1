// Forward glue and batch norm's vectors: stats_of, batch_norm_statistics, norm_act_forward and
// norm_backward_coefficients of glue.h.
//
//   v = y * scale + shift [+ residual], rounded to the float type;  out = act(v)
//   q = quantize_x(out);  codes: y on its channel's grid;  mask: where act passes a gradient
//
// One pass over memory writes all of it. Without a residual, the extremes of out that q's grid needs
// follow from those of y by channel, in a launch of one block before; with one, the pass finds them
// and a second one makes q from out.

#include <algorithm>
#include <cmath>

#include "cuda/glue.h"
#include "cuda/glue_columns.h"

namespace daq_mm::cuda {
namespace {

constexpr int kThreads = Columns::kThreads;
constexpr int kWarps = kThreads / kWarp;
constexpr int kStats = 4;
constexpr uint32_t kNan = 0x7fc00000u;

// A vector with an entry for each channel, of any float type.
struct AnyFloats {
  Global<const float> wide;
  Global<const uint16_t> narrow;
  FloatType type = FloatType::float32;

  explicit AnyFloats(const FloatData& data) : type(data.type) {
    if (type == FloatType::float32) {
      wide = {static_cast<const float*>(data.data), data.count};
    } else {
      narrow = {static_cast<const uint16_t*>(data.data), data.count};
    }
  }
  DAQ_DEVICE bool is_null() const { return wide.is_null() && narrow.is_null(); }
  DAQ_DEVICE float load(int64_t i) const {
    if (type == FloatType::float32) return wide.load(i);
    if (type == FloatType::bfloat16) return float_from_bfloat16(narrow.load(i));
    return float_from_half(narrow.load(i));
  }
  // Of a column, with one branch for all its channels, so that their loads are in flight together.
  template <bool vectors>
  DAQ_DEVICE void load_channels(const ColumnPlace<vectors>& place, float (&v)[kVector]) const {
    if (type == FloatType::float32) {
      place.load_channels(wide, 0, v);
      return;
    }
    uint32_t bits[kVector];
#pragma unroll
    for (int k = 0; k < kVector; ++k) bits[k] = place.has(k) ? narrow.load(place.channel + k) : 0;
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      const auto word = static_cast<uint16_t>(bits[k]);
      v[k] = type == FloatType::bfloat16 ? float_from_bfloat16(word) : float_from_half(word);
    }
  }
};

// ---- statistics ----

DAQ_DEVICE float lower(float a, float b) { return a != a || a < b ? a : b; }
DAQ_DEVICE float higher(float a, float b) { return a != a || a > b ? a : b; }

// Rows that a thread has in flight: there is one operand, so more of them.
template <FloatType type, bool vectors>
constexpr int kStatsAhead = !vectors ? 1 : type == FloatType::float32 ? 3 : 4;

// One of the four statistics of two parts.
DAQ_DEVICE double combined(int which, double a, double b) {
  if (which < 2) return a + b;
  if (a != a) return a;
  return which == 2 ? (a < b ? a : b) : (a > b ? a : b);
}

// partials (4, channels, parts), part by part of a column.
template <FloatType type, bool vectors>
DAQ_KERNEL(kThreads, 2)
void stats_kernel(FloatSource<type> y, ColumnWalk walk, Global<double> partials) {
  using Words = ColumnWords<type, vectors>;
  const ColumnPlace<vectors> place(walk);
  ChunkedSums<2> sums;
  float low[kVector], high[kVector];
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    low[k] = float_of_bits(kInfinityBits);
    high[k] = float_of_bits(kInfinityBits | kSignBit);
  }
  if (place.count > 0) {
    const auto load = [&](bool wanted, int64_t, int64_t i, Words& words) {
      words.load_if(wanted, place, y, i);
    };
    auto rows = rows_ahead<kStatsAhead<type, vectors>, Words>(walk, place.channel, load);
    rows.for_each([&](int64_t, int64_t, const Words& words) {
      sums.next_row();
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const float v = words.value(k);
        sums.add_to(0, k, v);
        sums.add_to(1, k, multiply(v, v));
        low[k] = lower(low[k], v);
        high[k] = higher(high[k], v);
      }
    });
  }
  const int64_t first = block_y() * walk.across * kVector;
  const auto store = [&](int which, int i, double value) {
    if (first + i >= walk.channels) return;
    partials.store((which * walk.channels + first + i) * walk.parts + block_x(), value);
  };
  sums.finish(walk, store);
  const Shared<float> scratch(0, kThreads * kVector);
#pragma unroll
  for (int which = 2; which < kStats; ++which) {
    barrier();
    const auto combine = [&](float a, float b) { return which == 2 ? lower(a, b) : higher(a, b); };
    reduce_columns<kVector>(walk, scratch, which == 2 ? low : high, combine,
                            [&](int i, float value) { store(which, i, value); });
  }
}

// A warp for each entry of stats (4, channels).
DAQ_KERNEL(kThreads, 4)
void combine_stats(Global<const double> partials, int64_t channels, int64_t parts,
                   Global<double> stats) {
  const int64_t i = block_x() * kWarps + warp_index();
  if (i >= kStats * channels) return;
  const int which = static_cast<int>(i / channels);
  double total = which < 2 ? 0.0 : partials.load(i * parts);
  for (int64_t part = lane_index(); part < parts; part += kWarp) {
    total = combined(which, total, partials.load(i * parts + part));
  }
  total = reduce_warp(total, [&](double a, double b) { return combined(which, a, b); });
  if (lane_index() == 0) stats.store(i, total);
}

// Running averages of any float type; read and written.
struct Running {
  Global<float> wide;
  Global<uint16_t> narrow;
  FloatType type = FloatType::float32;

  Running(void* data, FloatType type_, int64_t count) : type(type_) {
    if (type == FloatType::float32) {
      wide = {static_cast<float*>(data), count};
    } else {
      narrow = {static_cast<uint16_t*>(data), count};
    }
  }
  // average <- average * (1 - momentum) + value * momentum, in double.
  DAQ_DEVICE void move(int64_t i, double value, double momentum) const {
    if (wide.is_null() && narrow.is_null()) return;
    float old;
    if (type == FloatType::float32) {
      old = wide.load(i);
    } else if (type == FloatType::bfloat16) {
      old = float_from_bfloat16(narrow.load(i));
    } else {
      old = float_from_half(narrow.load(i));
    }
    const double moved = static_cast<double>(old) * (1 - momentum) + value * momentum;
    const float rounded = static_cast<float>(moved);
    if (type == FloatType::float32) {
      wide.store(i, rounded);
    } else if (type == FloatType::bfloat16) {
      narrow.store(i, bfloat16_from_float(rounded));
    } else {
      narrow.store(i, half_from_float(rounded));
    }
  }
};

DAQ_KERNEL(kThreads, 4)
void batch_norm_kernel(Global<const double> stats, int64_t channels, double count, double momentum,
                       double eps, Running running_mean, Running running_var, Global<float> mean,
                       Global<float> invstd) {
  const int64_t c = block_x() * kThreads + thread_index();
  if (c >= channels) return;
  const double m = stats.load(c) / count;
  const double difference = stats.load(channels + c) / count - m * m;
  const double variance = difference < 0 ? 0.0 : difference;  // NaN stays
  running_mean.move(c, m, momentum);
  running_var.move(c, variance * (count / (count - 1)), momentum);
  mean.store(c, static_cast<float>(m));
  // Squares beyond float32 must not end as zeros.
  const bool infinite = variance > 1.7976931348623157e308;
  invstd.store(c, infinite ? float_of_bits(kNan) : static_cast<float>(1 / sqrt(variance + eps)));
}

// dy = a gz + b y + c of batch norm's backward pass, in double.
DAQ_KERNEL(kThreads, 4)
void coefficients_kernel(Global<const double> sums, int64_t channels, double count,
                         AnyFloats weight, Global<const float> mean, Global<const float> invstd,
                         Global<float> coefficients) {
  const int64_t i = block_x() * kThreads + thread_index();
  if (i >= channels) return;
  const double inverse = invstd.load(i);
  const double scale = weight.is_null() ? inverse : inverse * static_cast<double>(weight.load(i));
  const double m1 = sums.load(i) / count, m2 = sums.load(channels + i) / count;
  const double b = -(scale * inverse * m2);
  coefficients.store(i, static_cast<float>(scale));
  coefficients.store(channels + i, static_cast<float>(b));
  coefficients.store(2 * channels + i,
                     static_cast<float>(-(scale * m1) - b * static_cast<double>(mean.load(i))));
}

// ---- norm, residual, activation ----

// scale and shift of a channel.
struct Affine {
  Global<const float> mean;  // or null: no norm
  Global<const float> invstd;
  AnyFloats weight;
  AnyFloats bias;

  DAQ_DEVICE void of_channel(int64_t c, float& scale, float& shift) const {
    scale = invstd.load(c);
    if (!weight.is_null()) scale = multiply(scale, weight.load(c));
    shift = subtract(bias.is_null() ? 0.0f : bias.load(c), multiply(mean.load(c), scale));
  }
  template <bool vectors>
  DAQ_DEVICE void of_column(const ColumnPlace<vectors>& place, float (&scale)[kVector],
                            float (&shift)[kVector]) const {
    float m[kVector], w[kVector], b[kVector] = {};
    place.load_channels(invstd, 0, scale);
    place.load_channels(mean, 0, m);
    if (!weight.is_null()) weight.load_channels(place, w);
    if (!bias.is_null()) bias.load_channels(place, b);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (!weight.is_null()) scale[k] = multiply(scale[k], w[k]);
      shift[k] = subtract(b[k], multiply(m[k], scale[k]));
    }
  }
};

DAQ_DEVICE float activated(float v, Activation act) {
  if (act == Activation::kNone) return v;
  const float positive = v <= 0.0f ? 0.0f : v;
  return act == Activation::kRelu6 && positive >= 6.0f ? 6.0f : positive;
}

DAQ_DEVICE bool passes(float v, Activation act) {
  return !(v <= 0.0f) && !(act == Activation::kRelu6 && v >= 6.0f);
}

// Makes act(v) of a column's values; bit k of the result says whether v[k] passes a gradient.
template <Activation act>
DAQ_DEVICE uint32_t activate(float (&v)[kVector]) {
  uint32_t bits = 0;
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    if (passes(v[k], act)) bits |= 1u << k;
    v[k] = activated(v[k], act);
  }
  return bits;
}

// Codes of a channel: low, and what (y - low) is multiplied with.
struct CodeGrid {
  float low;
  float high;

  DAQ_DEVICE float step() const { return divide(subtract(high, low), kUnsignedLevels); }
  DAQ_DEVICE float inverse() const {
    const float inverse = divide(kUnsignedLevels, subtract(high, low));
    return is_finite(inverse) ? inverse : 0.0f;
  }
};

DAQ_DEVICE CodeGrid code_grid(const Global<const double>& stats, int64_t channels, int64_t c) {
  return {static_cast<float>(stats.load(2 * channels + c)),
          static_cast<float>(stats.load(3 * channels + c))};
}

// Extremes of out, from those of y by channel: every step is monotone. One block.
template <FloatType type>
DAQ_KERNEL(kThreads, 1)
void predict_extremes(Global<const double> stats, int64_t channels, Affine affine, Activation act,
                      Global<uint32_t> extremes) {
  Extremes seen;
  for (int64_t c = thread_index(); c < channels; c += kThreads) {
    const CodeGrid ends = code_grid(stats, channels, c);
    float scale = 1.0f, shift = 0.0f;
    const bool norm = !affine.mean.is_null();
    if (norm) affine.of_channel(c, scale, shift);
    for (int end = 0; end < 2; ++end) {
      const float y = end == 0 ? ends.low : ends.high;
      const float v = norm ? add(multiply(y, scale), shift) : y;
      seen.see(activated(rounded_to<type>(v), act));
    }
    // An infinite scale makes a NaN of a zero between the ends.
    if (!is_finite(scale) || !is_finite(shift)) seen.magnitude = kNan;
  }
  gather_extremes(seen, extremes);
}

// What the pass reads and writes; null where not wanted.
template <FloatType type>
struct ForwardMemory {
  FloatSource<type> y;
  FloatSource<type> residual;
  Global<const double> stats;
  FloatTarget<type> out;
  Global<uint8_t> q;
  Global<float> qparams;
  Global<uint32_t> extremes;  // read for q; written where find_extremes
  bool find_extremes;
  bool allow_unsigned;
  Global<uint8_t> codes;
  Global<float> grid;
  Global<uint8_t> mask;
};

template <FloatType type, bool vectors>
DAQ_DEVICE void write_grids(const ForwardMemory<type>& memory, const ColumnWalk& walk,
                            const ColumnPlace<vectors>& place, const ActivationGrid& grid) {
  if (block_x() != 0 || thread_index() >= walk.across) return;
  if (!memory.codes.is_null()) {
    for (int k = 0; k < place.count; ++k) {
      const CodeGrid codes = code_grid(memory.stats, walk.channels, place.channel + k);
      memory.grid.store(place.channel + k, codes.low);
      memory.grid.store(walk.channels + place.channel + k, codes.step());
    }
  }
  if (!memory.qparams.is_null() && block_y() == 0 && thread_index() == 0) {
    memory.qparams.store(0, divide(grid.threshold, grid.levels));
    memory.qparams.store(1, grid.zero_point);
  }
}

template <FloatType type, bool vectors>
DAQ_KERNEL(kThreads, 2)
void forward_kernel(ForwardMemory<type> memory, ColumnWalk walk, Affine affine, Activation act) {
  struct Words {
    ColumnWords<type, vectors> y;
    ColumnWords<type, vectors> residual;
  };
  const ColumnPlace<vectors> place(walk);
  const bool norm = !affine.mean.is_null(), wants_q = !memory.q.is_null();
  const bool wants_codes = !memory.codes.is_null(), has_residual = !memory.residual.is_null();
  Extremes found;
  if (place.count > 0) {
    const auto load = [&](bool wanted, int64_t, int64_t i, Words& words) {
      words.y.load_if(wanted, place, memory.y, i);
      words.residual.load_if(wanted && has_residual, place, memory.residual, i);
    };
    auto rows = rows_ahead<kRowsAhead<type, vectors>, Words>(walk, place.channel, load);
    float scale[kVector] = {}, shift[kVector] = {}, inverse[kVector] = {};
    CodeGrid codes[kVector] = {};
    if (norm) affine.of_column(place, scale, shift);
    if (wants_codes) {  // all loads before the divisions, which have branches
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (place.has(k)) codes[k] = code_grid(memory.stats, walk.channels, place.channel + k);
      }
#pragma unroll
      for (int k = 0; k < kVector; ++k) inverse[k] = codes[k].inverse();
    }
    Extremes seen;
    if (!memory.qparams.is_null()) seen = {memory.extremes.load(0), memory.extremes.load(1)};
    const ActivationGrid grid(seen, memory.allow_unsigned);
    write_grids<type>(memory, walk, place, grid);
    rows.for_each([&](int64_t row, int64_t i, const Words& words) {
      // One branch a step for all values: what a launch does not want costs no more than that.
      float v[kVector];
      uint32_t b[kVector];
#pragma unroll
      for (int k = 0; k < kVector; ++k) v[k] = words.y.value(k);
      if (norm) {
#pragma unroll
        for (int k = 0; k < kVector; ++k) v[k] = add(multiply(v[k], scale[k]), shift[k]);
      }
      if (has_residual) {
#pragma unroll
        for (int k = 0; k < kVector; ++k) v[k] = add(v[k], words.residual.value(k));
      }
#pragma unroll
      for (int k = 0; k < kVector; ++k) v[k] = rounded_to<type>(v[k]);
      if (act != Activation::kNone) {
        const uint32_t bits = act == Activation::kRelu ? activate<Activation::kRelu>(v)
                                                       : activate<Activation::kRelu6>(v);
        memory.mask.store(place.of_mask(walk, row, i), static_cast<uint8_t>(bits & place.bits()));
      }
      if (memory.find_extremes) {
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          if (place.has(k)) found.see(v[k]);
        }
      }
      if (!memory.out.is_null()) place.template store<type>(memory.out, i, v);
      if (wants_q) {
#pragma unroll
        for (int k = 0; k < kVector; ++k) b[k] = grid.quantize(v[k]);
        place.store_codes(memory.q, i, b);
      }
      if (wants_codes) {
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          const float scaled = multiply(subtract(words.y.value(k), codes[k].low), inverse[k]);
          b[k] = rounded_bits(fminf(fmaxf(scaled, 0.0f), kUnsignedLevels), 0.0f);
        }
        place.store_codes(memory.codes, i, b);
      }
    });
  }
  if (memory.find_extremes) gather_extremes(found, memory.extremes);
}

template <FloatType type>
void launch_forward(const NormActForward& a, const GlueSize& size, const Affine& affine,
                    Stream stream) {
  const int64_t count = size.count(), channels = size.channels;
  const bool two_passes = a.residual != nullptr;
  ForwardMemory<type> memory;
  memory.y = source_of<type>({a.y, count, type});
  if (a.residual != nullptr) memory.residual = source_of<type>({a.residual, count, type});
  if (a.stats != nullptr) memory.stats = {a.stats, kStats * channels};
  if (a.out != nullptr) memory.out = target_of<type>(a.out, count);
  memory.extremes = {a.extremes, kExtremes};
  clear(a.extremes, kExtremes * sizeof(uint32_t), stream);
  if (!two_passes) {
    if (a.q != nullptr) memory.q = {a.q, count};
    memory.qparams = {a.qparams, 2};
    launch(predict_extremes<type>, Grid{}, kThreads, kExtremesShared, stream, memory.stats,
           channels, affine, a.act, memory.extremes);
  }
  memory.find_extremes = two_passes;
  memory.allow_unsigned = a.allow_unsigned;
  if (a.codes != nullptr) {
    memory.codes = {a.codes, count};
    memory.grid = {a.grid, 2 * channels};
  }
  if (a.act != Activation::kNone) memory.mask = {a.mask, size.mask_bytes()};
  const Columns columns = glue_columns(size);
  const bool vectors = all_aligned(size, a.y, a.residual, a.out, a.q, a.codes);
  const auto kernel = vectors ? forward_kernel<type, true> : forward_kernel<type, false>;
  launch(kernel, columns.grid, kThreads, kExtremesShared, stream, memory, ColumnWalk(columns),
         affine, a.act);
  if (two_passes && a.q == nullptr) {
    extremes_to_qparams(a.extremes, a.allow_unsigned, a.qparams, stream);
  } else if (two_passes) {
    const FloatImage out{{a.out, count, type}, 1, channels, size.rows, true};
    quantize_by_extremes(out, a.allow_unsigned, a.extremes, a.q, a.qparams, stream);
  }
}

}  // namespace

int64_t stats_workspace(const GlueSize& size) {
  return kStats * size.channels * glue_columns(size).parts * sizeof(double);
}

void stats_of(const GlueSize& size, const void* y, void* workspace, double* stats, Stream stream) {
  if (size.count() == 0) {
    clear(stats, kStats * size.channels * sizeof(double), stream);
    return;
  }
  const Columns columns = glue_columns(size);
  const Global<double> partials(static_cast<double*>(workspace),
                                kStats * size.channels * columns.parts);
  with_column_type(size, all_aligned(size, y), [&](auto type, auto by_vectors) {
    launch(stats_kernel<type(), by_vectors()>, columns.grid, kThreads, ChunkedSums<2>::kBytes,
           stream, source_of<type()>({y, size.count(), type()}), ColumnWalk(columns), partials);
  });
  launch(combine_stats, Grid{(kStats * size.channels + kWarps - 1) / kWarps}, kThreads, 0, stream,
         Global<const double>(static_cast<const double*>(workspace),
                              kStats * size.channels * columns.parts),
         size.channels, columns.parts, Global<double>(stats, kStats * size.channels));
}

void batch_norm_statistics(const BatchNormStatistics& a, Stream stream) {
  if (a.channels == 0) return;
  launch(batch_norm_kernel, Grid{(a.channels + kThreads - 1) / kThreads}, kThreads, 0, stream,
         Global<const double>(a.stats, kStats * a.channels), a.channels, a.count, a.momentum, a.eps,
         Running(a.running_mean, a.running_mean_type, a.channels),
         Running(a.running_var, a.running_var_type, a.channels), Global<float>(a.mean, a.channels),
         Global<float>(a.invstd, a.channels));
}

void norm_backward_coefficients(const BatchNormCoefficients& a, Stream stream) {
  if (a.channels == 0) return;
  launch(coefficients_kernel, Grid{(a.channels + kThreads - 1) / kThreads}, kThreads, 0, stream,
         Global<const double>(a.sums, 2 * a.channels), a.channels, a.count, AnyFloats(a.weight),
         Global<const float>(a.mean, a.channels), Global<const float>(a.invstd, a.channels),
         Global<float>(a.coefficients, 3 * a.channels));
}

void norm_act_forward(const NormActForward& a, const GlueSize& size, Stream stream) {
  const Affine affine{
      a.mean == nullptr ? Global<const float>() : Global<const float>(a.mean, size.channels),
      a.mean == nullptr ? Global<const float>() : Global<const float>(a.invstd, size.channels),
      AnyFloats(a.weight), AnyFloats(a.bias)};
  with_float_type(size.type, [&](auto type) { launch_forward<type()>(a, size, affine, stream); });
}

}  // namespace daq_mm::cuda
