// CUTLASS's convolutions for compute capability 9.0, as far as they run on a host: how a problem is
// described, and the collective that makes the tensor maps of its operands.
#pragma once

// Some of what CUTLASS's headers expect of nvcc; nothing of it is called here.
#include <cuda_runtime_api.h>
#ifndef __CUDACC_VER_MAJOR__
#define __CUDACC_VER_MAJOR__ (CUDART_VERSION / 1000)
#define __CUDACC_VER_MINOR__ (CUDART_VERSION % 1000 / 10)
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline void __syncthreads() {}
inline void __syncwarp() {}
#endif

#include <algorithm>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <tuple>

#include <cute/tensor.hpp>

#include <cute/atom/copy_traits_sm90_tma.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cutlass/detail/collective.hpp>
#include <cutlass/kernel_hardware_info.hpp>
#include <cutlass/conv/collective/collective_conv.hpp>

namespace theirs {

using Operation = cutlass::conv::Operator;

// Rows of 128 or 64 bytes in shared memory, permuted for wgmma.
template <int span>
using RowsAtom = std::conditional_t<span == 128, cute::SM90::GMMA::Layout_K_SW128_Atom<int8_t>,
                                    cute::SM90::GMMA::Layout_K_SW64_Atom<int8_t>>;

// Three stages of tiles of 128 x span bytes, and how they are copied.
template <typename copy_t, typename atom_t, int span>
struct Side {
  using GmemTiledCopy = copy_t;
  using SmemLayout = decltype(cute::tile_to_shape(
      atom_t{}, cute::Shape<cute::_128, cute::Int<span>, cute::_3>{}));
};

// How the collective has the weights in shared memory: as they lie in device memory, where the
// contraction of grad-input is not side by side. wgmma could not multiply bytes so; ours come
// packed, and are not compared here.
template <Operation operation, int span>
using WeightsAtom =
    std::conditional_t<operation == Operation::kDgrad,
                       cute::SM90::GMMA::Layout_MN_SW128_Atom<int8_t>, RowsAtom<span>>;

// Tiles of 128 x 128 results, `span` channels of a tap a stage, as our kernels take them.
template <Operation operation, int axes, int span>
using Collective = cutlass::conv::collective::CollectiveConv<
    cutlass::conv::MainloopSm90TmaGmmaWarpSpecializedImplicitGemm<
        operation, 3, axes, cute::Shape<cute::_1, cute::_1, cute::_1>,
        cutlass::conv::KernelImplicitTmaWarpSpecializedSm90, 1>,
    cute::Shape<cute::_128, cute::_128, cute::Shape<cute::Int<span>>>, int8_t, int8_t,
    decltype(cute::make_tiled_mma(cute::SM90::GMMA::MMA_64x128x32_S32S8S8_SS_TN{})),
    Side<cute::SM90_TMA_LOAD_IM2COL, RowsAtom<span>, span>,
    Side<cute::SM90_TMA_LOAD, WeightsAtom<operation, span>, span>>;

// A convolution of x (n, size, ci) with weights (co, kernel, ci); axes D, H, W, those that a
// convolution of fewer axes lacks at the beginning.
struct Problem {
  int n, ci, co;
  int size[3], kernel[3], stride[3], dilation[3], before[3], after[3];
};

template <Operation operation, int axes>
cutlass::conv::ConvProblemShape<operation, axes> shape_of(const Problem& p) {
  using shape_t = cutlass::conv::ConvProblemShape<operation, axes>;
  typename shape_t::TensorExtent x{}, w{};
  typename shape_t::SpatialExtent before{}, after{}, stride{}, dilation{};
  x[0] = p.n;
  w[0] = p.co;
  x[axes + 1] = w[axes + 1] = p.ci;
  for (int i = 0; i < axes; ++i) {
    const int axis = 3 - axes + i;
    x[i + 1] = p.size[axis];
    w[i + 1] = p.kernel[axis];
    before[i] = p.before[axis];
    after[i] = p.after[axis];
    stride[i] = p.stride[axis];
    dilation[i] = p.dilation[axis];
  }
  const auto mode = cutlass::conv::Mode::kCrossCorrelation;
  return shape_t(mode, x, w, before, after, stride, dilation, 1);
}

}  // namespace theirs
