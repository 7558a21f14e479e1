// Whether forward and grad-input may run by wgmma.
#pragma once

namespace daq_mm::cuda {

// The current device has compute capability 9.0, the module was compiled for it (sm_90a), op
// use_wgmma() did not say no, and the copy engine can read from this address.
bool may_use_wgmma(const void* source);

// Whether the module has wgmma kernels for the current device, which has compute capability 9.0.
bool has_wgmma_code();

}  // namespace daq_mm::cuda
