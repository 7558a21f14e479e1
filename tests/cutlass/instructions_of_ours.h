// The functions that instructions.cu compares, by csrc/cuda/primitives/hardware*.h.
#pragma once

#include "cuda/primitives/hardware_warpgroup.h"

using daq_mm::cuda::TensorMap;
using sum_t = int32_t;

namespace primitives = daq_mm::cuda;

__device__ inline primitives::Shared<uint8_t> shared_bytes(int first, int count) {
  return primitives::Shared<uint8_t>(first, count);
}

template <typename A, typename B>
__device__ void multiply_16x8x32(sum_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  primitives::multiply_add<A, B>(d, a, b);
}

template <typename A, typename B>
__device__ void multiply_8x8x16(sum_t& d0, sum_t& d1, uint32_t a, uint32_t b) {
  primitives::detail::product_8x8x16<A, B>(d0, d1, a, b);
}

template <typename A, typename B, int columns>
__device__ void multiply_shared(sum_t (&d)[columns / 8][4], uint64_t a, uint64_t b) {
  primitives::begin_products(d);
  primitives::multiply_add_async<A, B>(d, a, b);
  primitives::commit_products();
  primitives::finish_products(d);
}

template <int columns>
__device__ void multiply_registers(sum_t (&d)[columns / 8][4], const uint32_t (&a)[4], uint64_t b) {
  uint32_t operands[1][4] = {{a[0], a[1], a[2], a[3]}};
  primitives::begin_products(d, operands);
  primitives::multiply_add_async(d, operands[0], b);
  primitives::commit_products();
  primitives::finish_products(d);
}

template <int span, int byte>
__device__ uint64_t operand_descriptor() {
  return primitives::matrix_descriptor<span>(shared_bytes(1024, 64 * span), byte);
}

template <bool transposed>
__device__ void load_four_matrices(uint32_t (&result)[4], int byte) {
  if constexpr (transposed) {
    primitives::load_matrices_transposed(result, shared_bytes(0, 512), byte);
  } else {
    primitives::load_matrices(result, shared_bytes(0, 512), byte);
  }
}

__device__ inline void copy_16_bytes(int to, const uint8_t* from) {
  const primitives::Global<const uint8_t> source(from, 16);
  primitives::copy16_async(shared_bytes(0, 512), to, source, 0);
}
__device__ inline void end_copies() { primitives::commit_copies(); }
template <int groups>
__device__ void wait_for_copies() {
  primitives::wait_copies<groups>();
}

__device__ inline primitives::Arrivals arrivals() { return primitives::Arrivals(0); }
__device__ inline void set_arrivals(int count) { arrivals().set(count); }
__device__ inline void make_arrivals_known() { primitives::publish_arrivals(); }
__device__ inline void arrive() { arrivals().arrive(); }
__device__ inline void arrive_and_expect(int bytes) { arrivals().arrive_and_expect(bytes); }
__device__ inline void wait_for_arrivals(int parity) { arrivals().wait(parity); }
__device__ inline void make_stores_known() { primitives::publish_stores(); }

__device__ inline void copy_box(const TensorMap& map, int column, int row) {
  primitives::copy_box_async(shared_bytes(1024, 1024), map, column, row, arrivals());
}

__device__ inline void copy_walk_2d(const TensorMap& map, int channel, int w, int h, int image,
                                    uint16_t offset_w, uint16_t offset_h) {
  const int position[3] = {0, h, w}, offset[3] = {0, offset_h, offset_w};
  primitives::copy_walk_async<2>(shared_bytes(1024, 1024), map, channel, position, image, offset,
                                 arrivals());
}

__device__ inline void copy_walk_3d(const TensorMap& map, int channel, int w, int h, int d,
                                    int image, uint16_t offset_w, uint16_t offset_h,
                                    uint16_t offset_d) {
  const int position[3] = {d, h, w}, offset[3] = {offset_d, offset_h, offset_w};
  primitives::copy_walk_async<3>(shared_bytes(1024, 1024), map, channel, position, image, offset,
                                 arrivals());
}
