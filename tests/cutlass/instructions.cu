// Kernels that do one thing each: by our primitives, or with -DBY_CUTLASS by CUTLASS's wrappers of
// the same instructions. tests/test_cuda_cutlass.py compares the machine code of each kernel, so a
// mistyped instruction, an operand in the wrong place or a missing fence of ours is seen although
// nothing runs. With -DMISTAKEN each kernel of ours has one such mistake, and must differ.
//
// Both sides define the same functions, the kernels are written once: what surrounds the
// instruction is the same, so that the compiler has no reason to choose other registers.

#ifdef BY_CUTLASS
#include "instructions_of_cutlass.h"
#else
#include "instructions_of_ours.h"
#endif

#ifdef MISTAKEN
constexpr bool kMistaken = true;
#else
constexpr bool kMistaken = false;
#endif

template <typename T>
__device__ void exchange(T& a, T& b) {
  const T before = a;
  a = b;
  b = before;
}

// ---- products of a warp ----

template <typename A, typename B>
__device__ void warp_product(uint32_t* memory) {
  sum_t d[4];
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) d[i] = memory[i];
  for (int i = 0; i < 4; ++i) a[i] = memory[4 + i];
  for (int i = 0; i < 2; ++i) b[i] = memory[8 + i];
  if (kMistaken) exchange(a[1], a[2]);
  multiply_16x8x32<A, B>(d, a, b);
  for (int i = 0; i < 4; ++i) memory[i] = d[i];
}

// What hardware.h makes that of below compute capability 8.0; fragments.cpp shows that four of
// these are one of those.
template <typename A, typename B>
__device__ void small_product(uint32_t* memory) {
  sum_t d[2] = {static_cast<sum_t>(memory[0]), static_cast<sum_t>(memory[1])};
  uint32_t a = memory[2], b = memory[3];
  if (kMistaken) exchange(a, b);
  multiply_8x8x16<A, B>(d[0], d[1], a, b);
  for (int i = 0; i < 2; ++i) memory[i] = d[i];
}

#define WARP_PRODUCTS(name, A, B)                                                                 \
  extern "C" __global__ void warp_product_##name(uint32_t* memory) { warp_product<A, B>(memory); }\
  extern "C" __global__ void small_product_##name(uint32_t* memory) { small_product<A, B>(memory); }

WARP_PRODUCTS(s8_s8, int8_t, int8_t)
WARP_PRODUCTS(s8_u8, int8_t, uint8_t)
WARP_PRODUCTS(u8_s8, uint8_t, int8_t)
WARP_PRODUCTS(u8_u8, uint8_t, uint8_t)

// ---- products of a warpgroup ----

template <int columns>
__device__ void read_sums(sum_t (&d)[columns / 8][4], const uint32_t* memory) {
  for (auto& tile : d) {
    for (auto& sum : tile) sum = memory[threadIdx.x];
  }
}

template <int columns>
__device__ void write_sums(const sum_t (&d)[columns / 8][4], uint32_t* memory) {
  for (int i = 0; i < columns / 2; ++i) memory[threadIdx.x + 128 * i] = d[i / 4][i % 4];
}

// Both operands by descriptors.
template <typename A, typename B, int columns>
__device__ void shared_product(uint32_t* memory, uint64_t a, uint64_t b) {
  sum_t d[columns / 8][4];
  read_sums<columns>(d, memory);
  if (kMistaken) exchange(a, b);
  multiply_shared<A, B, columns>(d, a, b);
  write_sums<columns>(d, memory);
}

// The left operand in registers.
template <int columns>
__device__ void register_product(uint32_t* memory, uint64_t b) {
  sum_t d[columns / 8][4];
  uint32_t a[4];
  read_sums<columns>(d, memory);
  for (int i = 0; i < 4; ++i) a[i] = memory[i];
  if (kMistaken) exchange(a[1], a[2]);
  multiply_registers<columns>(d, a, b);
  write_sums<columns>(d, memory);
}

#define SHARED_PRODUCT(name, A, columns)                                                          \
  extern "C" __global__ void shared_product_##name(uint32_t* memory, uint64_t a, uint64_t b) {    \
    shared_product<A, int8_t, columns>(memory, a, b);                                             \
  }

SHARED_PRODUCT(s8_64, int8_t, 64)
SHARED_PRODUCT(s8_128, int8_t, 128)
SHARED_PRODUCT(s8_256, int8_t, 256)
SHARED_PRODUCT(u8_64, uint8_t, 64)
SHARED_PRODUCT(u8_128, uint8_t, 128)
SHARED_PRODUCT(u8_256, uint8_t, 256)

extern "C" __global__ void register_product_64(uint32_t* memory, uint64_t b) {
  register_product<64>(memory, b);
}
extern "C" __global__ void register_product_128(uint32_t* memory, uint64_t b) {
  register_product<128>(memory, b);
}

// The descriptor of an operand at byte 1024 of shared memory.
template <int span>
__device__ void descriptor(uint32_t* memory) {
  const uint64_t made = operand_descriptor<span, kMistaken ? 0 : 32>();  // byte of the rows
  memory[0] = static_cast<uint32_t>(made);
  memory[1] = static_cast<uint32_t>(made >> 32);
}

extern "C" __global__ void descriptor_64(uint32_t* memory) { descriptor<64>(memory); }
extern "C" __global__ void descriptor_128(uint32_t* memory) { descriptor<128>(memory); }

// ---- matrix loads, and copies by the threads ----

extern "C" __global__ void matrix_load(uint32_t* memory) {
  uint32_t result[4];
  load_four_matrices<kMistaken>(result, threadIdx.x * 16);
  for (int i = 0; i < 4; ++i) memory[i] = result[i];
}

extern "C" __global__ void transposed_matrix_load(uint32_t* memory) {
  uint32_t result[4];
  load_four_matrices<!kMistaken>(result, threadIdx.x * 16);
  for (int i = 0; i < 4; ++i) memory[i] = result[i];
}

extern "C" __global__ void copies_of_threads(const uint8_t* from) {
  copy_16_bytes(threadIdx.x * 16, from);
  end_copies();
  if (kMistaken) {
    wait_for_copies<0>();
  } else {
    wait_for_copies<1>();
  }
}

// ---- arrival objects, at byte 0 of shared memory ----

extern "C" __global__ void arrivals_set(int count) {
  set_arrivals(count);
  if (!kMistaken) make_arrivals_known();
}

extern "C" __global__ void arrivals_arrive(int bytes) {
  if (kMistaken) {
    arrive_and_expect(bytes);
  } else {
    arrive();
  }
}

extern "C" __global__ void arrivals_expect(int bytes) {
  if (kMistaken) {
    arrive();
  } else {
    arrive_and_expect(bytes);
  }
}

extern "C" __global__ void arrivals_wait(int parity) { wait_for_arrivals(kMistaken ? 1 : parity); }

extern "C" __global__ void stores_published() {
  if (kMistaken) {
    make_arrivals_known();
    arrive();
  } else {
    make_stores_known();
  }
}

// ---- copies by the copy engine, to byte 1024 of shared memory ----

extern "C" __global__ void box_copy(__grid_constant__ const TensorMap map, int column, int row) {
  if (kMistaken) exchange(column, row);
  copy_box(map, column, row);
}

extern "C" __global__ void walk_copy_2d(__grid_constant__ const TensorMap map, int channel, int w,
                                        int h, int image, uint16_t offset_w, uint16_t offset_h) {
  if (kMistaken) exchange(offset_w, offset_h);
  copy_walk_2d(map, channel, w, h, image, offset_w, offset_h);
}

extern "C" __global__ void walk_copy_3d(__grid_constant__ const TensorMap map, int channel, int w,
                                        int h, int d, int image, uint16_t offset_w,
                                        uint16_t offset_h, uint16_t offset_d) {
  if (kMistaken) exchange(d, h);
  copy_walk_3d(map, channel, w, h, d, image, offset_w, offset_h, offset_d);
}
