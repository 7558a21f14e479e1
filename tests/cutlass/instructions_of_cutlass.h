// The functions that instructions.cu compares, by CUTLASS and CuTe.
#pragma once

#include <utility>

#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <cute/arch/mma_sm90.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>
#include <cutlass/arch/barrier.h>

#include "operations.h"

using sum_t = uint32_t;

// As ours: 128 bytes that the driver fills, which no kernel looks into.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

__device__ inline uint4* shared_memory() {
  extern __shared__ __align__(1024) uint4 bytes[];
  return bytes;
}
__device__ inline void* shared_byte(int byte) {
  return reinterpret_cast<uint8_t*>(shared_memory()) + byte;
}

template <typename A, typename B>
__device__ void multiply_16x8x32(sum_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using operation = typename Operation16x8x32<A, B>::type;
  operation::fma(d[0], d[1], d[2], d[3], a[0], a[1], a[2], a[3], b[0], b[1], d[0], d[1], d[2],
                 d[3]);
}

template <typename A, typename B>
__device__ void multiply_8x8x16(sum_t& d0, sum_t& d1, uint32_t a, uint32_t b) {
  Operation8x8x16<A, B>::type::fma(d0, d1, a, b, d0, d1);
}

// CuTe's wrappers of products of a warpgroup have a parameter for each register of the sums.
template <typename operation, int tiles, int... i, typename... operands_t>
__device__ void multiply_spread(std::integer_sequence<int, i...>, sum_t (&d)[tiles][4],
                                operands_t... operands) {
  for (auto& tile : d) {
    for (auto& sum : tile) cute::warpgroup_fence_operand(sum);
  }
  cute::warpgroup_arrive();
  operation::fma(operands..., d[i / 4][i % 4]...);
  cute::warpgroup_commit_batch();
  cute::warpgroup_wait<0>();
  for (auto& tile : d) {
    for (auto& sum : tile) cute::warpgroup_fence_operand(sum);
  }
}

template <typename A, typename B, int columns>
__device__ void multiply_shared(sum_t (&d)[columns / 8][4], uint64_t a, uint64_t b) {
  multiply_spread<SharedOperation<A, B, columns>>(std::make_integer_sequence<int, columns / 2>(), d,
                                                  a, b);
}

template <int columns>
__device__ void multiply_registers(sum_t (&d)[columns / 8][4], uint32_t (&a)[4], uint64_t b) {
  for (auto& operand : a) cute::warpgroup_fence_operand(operand);
  multiply_spread<RegisterOperation<int8_t, uint8_t, columns>>(
      std::make_integer_sequence<int, columns / 2>(), d, a[0], a[1], a[2], a[3], b);
}

template <int span, int byte>
__device__ uint64_t operand_descriptor() {
  using namespace cute;
  using rows_t = std::conditional_t<span == 128, SM90::GMMA::Layout_K_SW128_Atom<uint8_t>,
                                    SM90::GMMA::Layout_K_SW64_Atom<uint8_t>>;
  const auto layout = tile_to_shape(rows_t{}, Shape<_64, Int<span>>{});
  const auto* rows = static_cast<const uint8_t*>(shared_byte(1024));
  const auto taken = local_tile(make_tensor(make_smem_ptr(rows), layout), Shape<_64, _32>{},
                                make_coord(_0{}, Int<byte / 32>{}));
  return static_cast<uint64_t>(SM90::GMMA::make_gmma_desc<SM90::GMMA::Major::K>(taken));
}

template <bool transposed>
__device__ void load_four_matrices(uint32_t (&result)[4], int byte) {
  const auto& row = *static_cast<const cute::uint128_t*>(shared_byte(byte));
  if constexpr (transposed) {
    cute::SM75_U16x8_LDSM_T::copy(row, result[0], result[1], result[2], result[3]);
  } else {
    cute::SM75_U32x4_LDSM_N::copy(row, result[0], result[1], result[2], result[3]);
  }
}

__device__ inline void copy_16_bytes(int to, const uint8_t* from) {
  cute::SM80_CP_ASYNC_CACHEGLOBAL<cute::uint128_t>::copy(
      *reinterpret_cast<const cute::uint128_t*>(from),
      *static_cast<cute::uint128_t*>(shared_byte(to)));
}
__device__ inline void end_copies() { cute::cp_async_fence(); }
template <int groups>
__device__ void wait_for_copies() {
  cute::cp_async_wait<groups>();
}

using Barrier = cutlass::arch::ClusterTransactionBarrier;

__device__ inline uint64_t* arrivals() { return static_cast<uint64_t*>(shared_byte(0)); }
__device__ inline void set_arrivals(int count) { Barrier::init(arrivals(), count); }
__device__ inline void make_arrivals_known() {
  cutlass::arch::fence_barrier_init();
  cutlass::arch::fence_view_async_shared();
}
__device__ inline void arrive() { Barrier::arrive(arrivals()); }
__device__ inline void arrive_and_expect(int bytes) {
  Barrier::arrive_and_expect_tx(arrivals(), bytes);
}
__device__ inline void wait_for_arrivals(int parity) {
  while (!Barrier::try_wait(arrivals(), parity)) {
  }
}
__device__ inline void make_stores_known() { cutlass::arch::fence_view_async_shared(); }

// CuTe always says how long the cache shall keep the bytes (as, above, how many it shall fetch), we
// never. The test takes these hints out of the PTX, so that all else is compared.
__device__ inline void copy_box(const TensorMap& map, int column, int row) {
  const auto hint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
  cute::SM90_TMA_LOAD_2D::copy(&map, arrivals(), hint, shared_byte(1024), column, row);
}

__device__ inline void copy_walk_2d(const TensorMap& map, int channel, int w, int h, int image,
                                    uint16_t offset_w, uint16_t offset_h) {
  cute::SM90_TMA_LOAD_IM2COL_4D::copy(&map, arrivals(), shared_byte(1024), channel, w, h, image,
                                      offset_w, offset_h);
}

__device__ inline void copy_walk_3d(const TensorMap& map, int channel, int w, int h, int d,
                                    int image, uint16_t offset_w, uint16_t offset_h,
                                    uint16_t offset_d) {
  cute::SM90_TMA_LOAD_IM2COL_5D::copy(&map, arrivals(), shared_byte(1024), channel, w, h, d, image,
                                      offset_w, offset_h, offset_d);
}
