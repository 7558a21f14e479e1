// The sizes of a convolution as kernels get them: plain numbers, 2D as 3D of depth 1. And the
// implicit matrix product that forward and grad-input are: which source positions and which taps of
// the kernel a result meets.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DAQ_BOTH __host__ __device__
#else
#define DAQ_BOTH
#endif

namespace daq_mm::cuda {

struct ConvSizes {
  int64_t n = 0;
  int64_t ci = 0;  // all groups
  int64_t co = 0;
  int64_t groups = 1;
  int in[3] = {1, 1, 1};
  int out[3] = {1, 1, 1};
  int kernel[3] = {1, 1, 1};
  int stride[3] = {1, 1, 1};
  int dilation[3] = {1, 1, 1};
  int pad[3] = {0, 0, 0};  // at the beginning

  DAQ_BOTH int64_t ci_per_group() const { return ci / groups; }
  DAQ_BOTH int64_t co_per_group() const { return co / groups; }
  DAQ_BOTH int64_t in_positions() const { return int64_t{1} * in[0] * in[1] * in[2]; }
  DAQ_BOTH int64_t out_positions() const { return int64_t{1} * out[0] * out[1] * out[2]; }
  DAQ_BOTH int64_t taps() const { return int64_t{1} * kernel[0] * kernel[1] * kernel[2]; }
  DAQ_BOTH bool is_depthwise() const { return groups == ci && groups == co && groups > 1; }
};

// Along one axis, the results start, start + step, ... (`count` of them) meet `taps` taps of the
// kernel, first_tap, first_tap + tap_step, ...; result i and tap j meet source position
// i * multiplier + shift + j * shift_step, which may lie outside.
struct AxisMap {
  int count;
  int start;
  int step;
  int multiplier;
  int taps;
  int first_tap;
  int tap_step;
  int shift;
  int shift_step;
};

DAQ_BOTH inline int greatest_divisor(int a, int b) {
  while (b != 0) {
    const int rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

DAQ_BOTH inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
DAQ_BOTH inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Forward: source x, results y.
DAQ_BOTH inline AxisMap forward_axis(const ConvSizes& s, int axis) {
  return {s.out[axis], 0, 1, s.stride[axis], s.kernel[axis], 0, 1, -s.pad[axis], s.dilation[axis]};
}

// Grad-input: source g, results those of dx whose position is `residue` modulo the stride. They
// meet the taps k with (residue + pad - k * dilation) divisible by the stride.
DAQ_BOTH inline AxisMap grad_input_axis(const ConvSizes& s, int axis, int residue) {
  const int stride = s.stride[axis], dilation = s.dilation[axis];
  const int divisor = greatest_divisor(stride, dilation);
  const int tap_step = stride / divisor;
  const int reach = residue + s.pad[axis];
  int first = 0;
  while (first < tap_step && (reach - first * dilation) % stride != 0) ++first;
  const int kernel = s.kernel[axis];
  const bool none = first == tap_step || first >= kernel;
  const int count = s.in[axis] > residue ? ceil_div(s.in[axis] - residue, stride) : 0;
  return {count, residue, stride, 1, none ? 0 : ceil_div(kernel - first, tap_step), first, tap_step,
          none ? 0 : (reach - first * dilation) / stride, -(dilation / divisor)};
}

// Most taps that one residue meets.
DAQ_BOTH inline int grad_input_most_taps(const ConvSizes& s, int axis) {
  return ceil_div(s.kernel[axis], s.stride[axis] / greatest_divisor(s.stride[axis],
                                                                    s.dilation[axis]));
}

// One product of forward or grad-input: the three axes of a phase (for grad-input, residues modulo
// the stride; forward has one).
struct ConvMap {
  AxisMap axis[3];

  DAQ_BOTH int64_t positions() const {  // of one image
    return int64_t{1} * axis[0].count * axis[1].count * axis[2].count;
  }
  DAQ_BOTH int64_t taps() const {
    return int64_t{1} * axis[0].taps * axis[1].taps * axis[2].taps;
  }
};

DAQ_BOTH inline int64_t phases(const ConvSizes& s, bool backward) {
  return backward ? int64_t{1} * s.stride[0] * s.stride[1] * s.stride[2] : 1;
}

DAQ_BOTH inline ConvMap conv_map(const ConvSizes& s, bool backward, int64_t phase) {
  if (!backward) return {{forward_axis(s, 0), forward_axis(s, 1), forward_axis(s, 2)}};
  const int w = static_cast<int>(phase % s.stride[2]);
  const int h = static_cast<int>(phase / s.stride[2] % s.stride[1]);
  const int d = static_cast<int>(phase / s.stride[2] / s.stride[1]);
  return {{grad_input_axis(s, 0, d), grad_input_axis(s, 1, h), grad_input_axis(s, 2, w)}};
}

}  // namespace daq_mm::cuda
