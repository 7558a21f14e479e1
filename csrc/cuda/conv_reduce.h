// What grad_input_reduce adds where a tile of grad-input leaves for memory: see conv_kernels.h for
// the formula. A lane has a chunk of 16 bytes of some rows, always of the same channels, so that
// the sums of these channels stay in its registers. Included by conv_epilogue.h.
#pragma once

#include "cuda/conv_result.h"
#include "cuda/conv_tile.h"

namespace daq_mm::cuda {

// The operands beside those of grad-input; g2 and a y without grid are of the results' type.
struct ReduceArguments {
  Global<const uint8_t> g2;     // or null
  Global<const uint8_t> mask;   // or null
  Global<const uint8_t> y;      // not null if mean is not
  Global<const float> grid;     // (2, channels), where y is codes
  Global<const float> mean;     // (channels), or null
  Global<const float> invstd;
  Global<float> sums;           // [phase][row tile][2][channels]; null: plain grad-input
  int64_t row_tiles = 0;        // of a phase, at most
};

namespace rows {

// What the sums need of a column, beside the tile's own scale, in shared memory.
enum ReduceColumn { kLow = 1, kGridStep, kMean, kInvstd, kReduceColumns };

template <ResultType type, int warp_columns>
class Reduction {
 public:
  static constexpr int kSize = type == ResultType::kFloat32 ? 4 : 2;
  static constexpr int kValues = kChunk / kSize;                     // channels of a lane
  static constexpr int kPerRow = warp_columns / kValues;             // chunks of a row
  static constexpr int kAcross = kPerRow < kWarp ? kPerRow : kWarp;  // lanes side by side
  static constexpr int kParts = kPerRow / kAcross;                   // chunks of a lane in a row
  static constexpr int kRowsAPass = kWarp / kAcross;
  static constexpr int kPasses = 16 / kRowsAPass;
  // Rows of a lane that are loaded together: the compiler moves no load before a store, which might
  // be of the same memory.
  static constexpr int kAhead = 2;
  static_assert(kPasses % kAhead == 0 && kParts * kAcross == kPerRow);

  // channels: of all groups.
  DAQ_DEVICE Reduction(const ReduceArguments& arguments, int64_t channels)
      : a_(arguments), channels_(channels), mask_row_((channels + 7) / 8) {}

  // 16 rows of `piece`, row_bytes apart, go to `results`; position(row) is where a row lies, or -1.
  // The warp's first column is `column` of the tile and channel `channel`; `used` columns of it
  // exist. column_values(which) gives a ReduceColumn of the tile's columns.
  template <typename F, typename G>
  DAQ_DEVICE void store(const Shared<uint8_t>& piece, int row_bytes, const Global<uint8_t>& results,
                        int column, int64_t channel, int64_t used, F position, G column_values) {
    const int first_row = lane_index() / kAcross;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int chunk = part * kAcross + lane_index() % kAcross;
      const int64_t own = channel + chunk * kValues;
      if (chunk * kValues >= used) continue;
#pragma unroll 1
      for (int pass = 0; pass < kPasses; pass += kAhead) {
        Operands operands[kAhead];
        int64_t at[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          at[i] = position((pass + i) * kRowsAPass + first_row);
          if (at[i] >= 0) load(operands[i], at[i], own);
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (at[i] < 0) continue;
          const int row = (pass + i) * kRowsAPass + first_row;
          auto values = piece.template load_as<Bytes16>(row * row_bytes + chunk * kChunk);
          include(values, operands[i], part, column + chunk * kValues, column_values);
          results.store_as((at[i] * channels_ + own) * kSize, values);
        }
      }
    }
  }

  // The warp's sums of its columns: store(which, column of the warp, sum) for each, by one lane.
  template <typename F>
  DAQ_DEVICE void finish(F store) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int first = (part * kAcross + lane_index() % kAcross) * kValues;
#pragma unroll
      for (int which = 0; which < 2; ++which) {
#pragma unroll
        for (int k = 0; k < kValues; ++k) {
          float& sum = sums_[part][which][k];
#pragma unroll
          for (int mask = kAcross; mask < kWarp; mask *= 2) sum = add(sum, shuffle_xor(sum, mask));
        }
        if (lane_index() >= kAcross) continue;
#pragma unroll
        for (int k = 0; k < kValues; k += 4) {
          const float* of = sums_[part][which] + k;
          store(which, first + k,
                Bytes16{{bits_of(of[0]), bits_of(of[1]), bits_of(of[2]), bits_of(of[3])}});
        }
      }
    }
  }

 private:
  // Of one chunk.
  struct Operands {
    Bytes16 g2;
    Bytes16 y;  // codes: the first kValues bytes
    uint32_t mask;
  };

  DAQ_DEVICE void load(Operands& o, int64_t position, int64_t channel) const {
    const int64_t at = position * channels_ + channel;
    if (!a_.g2.is_null()) o.g2 = a_.g2.load_as<Bytes16>(at * kSize);
    o.mask = 0xffu;
    if (!a_.mask.is_null()) {
      o.mask = a_.mask.load(position * mask_row_ + channel / 8) >> (channel % 8);
    }
    if (a_.mean.is_null()) return;
    if (a_.grid.is_null()) {
      o.y = a_.y.load_as<Bytes16>(at * kSize);
    } else if constexpr (kValues == 8) {
      const auto codes = a_.y.load_as<Bytes8>(at);
      o.y.word[0] = codes.word[0];
      o.y.word[1] = codes.word[1];
    } else {
      o.y.word[0] = a_.y.load_as<uint32_t>(at);
    }
  }

  static DAQ_DEVICE float value_of(const Bytes16& chunk, int k) {
    return result_value(kSize == 4 ? chunk.word[k] : chunk.word[k / 2] >> (k % 2 * 16) & 0xffffu,
                        type);
  }

  // Makes values of dx those of gz, and adds them up. Each operation is rounded as in
  // norm_act_reduce.
  template <typename G>
  DAQ_DEVICE void include(Bytes16& values, const Operands& o, int part, int column,
                          const G& column_values) {
#pragma unroll
    for (int first = 0; first < kValues; first += 4) {
      float v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        v[k] = value_of(values, first + k);
        if (!a_.g2.is_null()) {
          v[k] = result_value(float_bits_as<type>(add(v[k], value_of(o.g2, first + k))), type);
        }
        if ((o.mask >> (first + k) & 1u) == 0) v[k] = 0.0f;
        sums_[part][0][first + k] = add(sums_[part][0][first + k], v[k]);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {  // exactly what v has been rounded to
        const uint32_t bits = float_bits_as<type>(v[k]);
        if constexpr (kSize == 4) {
          values.word[first + k] = bits;
        } else if (k % 2 == 0) {
          values.word[(first + k) / 2] = bits;
        } else {
          values.word[(first + k) / 2] |= bits << 16;
        }
      }
      if (a_.mean.is_null()) continue;
      float x[4];
      if (a_.grid.is_null()) {
#pragma unroll
        for (int k = 0; k < 4; ++k) x[k] = value_of(o.y, first + k);
      } else {
        const auto low = column_values(kLow).template load_as<Bytes16>(column + first);
        const auto step = column_values(kGridStep).template load_as<Bytes16>(column + first);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const auto code = static_cast<float>(o.y.word[first / 4] >> (8 * k) & 0xffu);
          x[k] = add(float_of_bits(low.word[k]), multiply(code, float_of_bits(step.word[k])));
        }
      }
      const auto mean = column_values(kMean).template load_as<Bytes16>(column + first);
      const auto invstd = column_values(kInvstd).template load_as<Bytes16>(column + first);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float centred = subtract(x[k], float_of_bits(mean.word[k]));
        const float product = multiply(v[k], multiply(centred, float_of_bits(invstd.word[k])));
        sums_[part][1][first + k] = add(sums_[part][1][first + k], product);
      }
    }
  }

  const ReduceArguments& a_;
  int64_t channels_;
  int64_t mask_row_;
  float sums_[kParts][2][kValues] = {};
};

}  // namespace rows
}  // namespace daq_mm::cuda
