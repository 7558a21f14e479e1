// The sizes of a convolution, 2D or 3D, shared by all kernels: holds, validates, prints itself.
//
// A 2D convolution is a 3D one of depth 1, so kernels see three spatial axes always (D, H, W).
// The same checks with the same words stand in daq_mm/ops/geometry.py for the reference.
#pragma once

#include <array>
#include <cstdint>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

namespace daq_mm {

struct ConvGeometry {
  int rank = 2;        // spatial axes of the tensors, 2 or 3
  int64_t n = 0;       // batch
  int64_t ci = 0;      // input channels, all groups
  int64_t co = 0;      // output channels, all groups
  int64_t groups = 1;
  std::array<int64_t, 3> in{1, 1, 1};      // input D, H, W
  std::array<int64_t, 3> out{1, 1, 1};     // output D, H, W
  std::array<int64_t, 3> kernel{1, 1, 1};
  std::array<int64_t, 3> stride{1, 1, 1};
  std::array<int64_t, 3> dilation{1, 1, 1};
  std::array<int64_t, 3> pad_begin{0, 0, 0};
  std::array<int64_t, 3> pad_end{0, 0, 0};

  int64_t ci_per_group() const { return ci / groups; }
  int64_t co_per_group() const { return co / groups; }
  int64_t in_positions() const { return in[0] * in[1] * in[2]; }
  int64_t out_positions() const { return out[0] * out[1] * out[2]; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  int64_t forward_contraction() const { return ci_per_group() * taps(); }
  int64_t grad_input_contraction() const { return co_per_group() * taps(); }
  int64_t grad_weight_contraction() const { return n * out_positions(); }
  bool is_depthwise() const { return groups == ci && groups == co && groups > 1; }
  bool is_pointwise() const {  // 1x1, no padding, unit stride: a plain matrix product
    for (int a = 0; a < 3; ++a) {
      if (kernel[a] != 1 || stride[a] != 1 || pad_begin[a] != 0 || pad_end[a] != 0) return false;
    }
    return true;
  }

  std::string str() const {
    std::ostringstream s;
    s << rank << "D convolution: x (" << n << ", " << ci << ", " << in[0] << ", " << in[1] << ", "
      << in[2] << "), " << co << " outputs, kernel (" << kernel[0] << ", " << kernel[1] << ", "
      << kernel[2] << "), stride (" << stride[0] << ", " << stride[1] << ", " << stride[2]
      << "), dilation (" << dilation[0] << ", " << dilation[1] << ", " << dilation[2]
      << "), groups " << groups;
    return s.str();
  }

  // Sizes of x (N, Ci, *spatial) and w (Co, Ci / groups, *kernel); padding is all the begins and
  // then all the ends. Raises ValueError with the argument's name.
  static ConvGeometry make(at::IntArrayRef x_size, at::IntArrayRef w_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
    ConvGeometry g;
    const int64_t rank = static_cast<int64_t>(w_size.size()) - 2;
    TORCH_CHECK_VALUE(rank == 2 || rank == 3, "w has ", w_size.size(),
                      " axes; expected 4 (2D) or 5 (3D)");
    TORCH_CHECK_VALUE(x_size.size() == w_size.size(), "x has ", x_size.size(), " axes ", x_size,
                      "; expected ", rank + 2, " for a weight of size ", w_size);
    TORCH_CHECK_VALUE(static_cast<int64_t>(stride.size()) == rank, "stride has ", stride.size(),
                      " entries; expected ", rank);
    TORCH_CHECK_VALUE(static_cast<int64_t>(dilation.size()) == rank, "dilation has ",
                      dilation.size(), " entries; expected ", rank);
    TORCH_CHECK_VALUE(static_cast<int64_t>(padding.size()) == 2 * rank, "padding has ",
                      padding.size(), " entries; expected ", 2 * rank);
    TORCH_CHECK_VALUE(groups >= 1 && w_size[0] % groups == 0, "groups=", groups,
                      " must be at least 1 and divide the ", w_size[0], " output channels");
    TORCH_CHECK_VALUE(x_size[1] == w_size[1] * groups, "x has ", x_size[1],
                      " channels; expected ", w_size[1] * groups, " (weight ", w_size,
                      ", groups=", groups, ")");
    g.rank = static_cast<int>(rank);
    g.n = x_size[0];
    g.ci = x_size[1];
    g.co = w_size[0];
    g.groups = groups;
    for (int64_t axis = 0; axis < rank; ++axis) {
      const int a = static_cast<int>(3 - rank + axis);
      g.in[a] = x_size[axis + 2];
      g.kernel[a] = w_size[axis + 2];
      g.stride[a] = stride[axis];
      g.dilation[a] = dilation[axis];
      g.pad_begin[a] = padding[axis];
      g.pad_end[a] = padding[rank + axis];
      TORCH_CHECK_VALUE(g.stride[a] >= 1 && g.dilation[a] >= 1, "stride ", stride,
                        " and dilation ", dilation, " must be at least 1");
      TORCH_CHECK_VALUE(g.pad_begin[a] >= 0 && g.pad_end[a] >= 0, "padding ", padding,
                        " must not be negative");
      const int64_t span = g.in[a] + g.pad_begin[a] + g.pad_end[a] -
                           g.dilation[a] * (g.kernel[a] - 1) - 1;
      TORCH_CHECK_VALUE(span >= 0 && g.kernel[a] >= 1, "kernel ", w_size.slice(2),
                        " with dilation ", dilation, " is larger than the padded input ",
                        x_size.slice(2), ", padding ", padding);
      g.out[a] = span / g.stride[a] + 1;
    }
    return g;
  }

  // Of one output channel, for what depends on x and the kernel's windows alone.
  static ConvGeometry windows(at::IntArrayRef x_size, at::IntArrayRef kernel,
                              at::IntArrayRef stride, at::IntArrayRef padding,
                              at::IntArrayRef dilation) {
    std::vector<int64_t> w_size{1, x_size[1]};
    w_size.insert(w_size.end(), kernel.begin(), kernel.end());
    return make(x_size, w_size, stride, padding, dilation, 1);
  }

  // (Ci, *kernel) and (N, Co, *out) with the tensors' own rank.
  std::vector<int64_t> windows_size() const {
    std::vector<int64_t> size = w_size();
    size.erase(size.begin());
    return size;
  }
  std::vector<int64_t> out_size() const { return sized(n, co, out); }
  std::vector<int64_t> x_size() const { return sized(n, ci, in); }
  std::vector<int64_t> w_size() const { return sized(co, ci_per_group(), kernel); }

 private:
  std::vector<int64_t> sized(int64_t a, int64_t b, const std::array<int64_t, 3>& spatial) const {
    std::vector<int64_t> size{a, b};
    size.insert(size.end(), spatial.begin() + (3 - rank), spatial.end());
    return size;
  }
};

inline std::ostream& operator<<(std::ostream& s, const ConvGeometry& g) { return s << g.str(); }

}  // namespace daq_mm
