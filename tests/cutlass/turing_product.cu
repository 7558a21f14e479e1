// The product of a warp where there is no m16n8k32, below compute capability 8.0: by ours, or with
// -DBY_CUTLASS by CuTe's m8n8k16 in the order of quarters.h, which fragments.cpp proves right. With
// -DMISTAKEN two registers are exchanged, as in instructions.cu.

#include <cstdint>

#ifdef BY_CUTLASS
#include <cute/arch/mma_sm75.hpp>

#include "quarters.h"
using sum_t = uint32_t;
#else
#include "cuda/primitives/hardware.h"
using sum_t = int32_t;
#endif

extern "C" __global__ void quartered_product(uint32_t* memory) {
  sum_t d[4];
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) d[i] = memory[i];
  for (int i = 0; i < 4; ++i) a[i] = memory[4 + i];
  for (int i = 0; i < 2; ++i) b[i] = memory[8 + i];
#ifdef BY_CUTLASS
#pragma unroll
  for (int i = 0; i < kQuarters; ++i) {
    const Quarter q = quarter(i);
    sum_t& d0 = d[q.first_sum];
    sum_t& d1 = d[q.first_sum + 1];
    cute::SM75_8x8x16_S32S8S8S32_TN::fma(d0, d1, a[q.a], b[q.b], d0, d1);
  }
#else
#ifdef MISTAKEN
  const uint32_t second = a[1];
  a[1] = a[2];
  a[2] = second;
#endif
  daq_mm::cuda::multiply_add<int8_t, int8_t>(d, a, b);
#endif
  for (int i = 0; i < 4; ++i) memory[i] = d[i];
}
