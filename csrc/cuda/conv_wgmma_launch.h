// The launch of conv_rows_wgmma.cu, for conv_forward.cu and conv_grad_input.cu.
#pragma once

#include "cuda/conv_epilogue.h"
#include "cuda/conv_kernels.h"

namespace daq_mm::cuda {

// What is made for a launch and read by it.
struct WgmmaOperands {
  Global<const int8_t> q_w;
  Global<uint8_t> packed;    // of RowsArguments::packed
  Global<int32_t> sums;      // forward: (Co,)
  Global<int32_t> tap_sums;  // forward: (taps, Co)
};

// Packs the weights and multiplies. Of the arguments, `gather` and `pads` are not used.
void launch_rows_wgmma(const RowsArguments& arguments, bool backward, const ConvPlan& plan,
                       const WgmmaOperands& operands, Stream stream);

}  // namespace daq_mm::cuda
