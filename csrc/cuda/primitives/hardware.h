// The primitives on the hardware: CUDA built-ins and inline PTX, compute capability 7.5 and up.
// Below 8.0, where cp.async and m16n8k32 do not exist, copies are synchronous and a product is made
// of four m8n8k16 ones; the fragments are the same. Fragment layouts: PTX ISA, "Matrix Fragments
// for mma.m16n8k32" and "ldmatrix"; emulated.h spells them out.
#pragma once

#include <type_traits>

#include <c10/cuda/CUDAException.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/primitives/types.h"

#define DAQ_DEVICE __device__ __forceinline__
// A kernel of at most `threads` threads a block, compiled so that `blocks` of them fit a processor.
#define DAQ_KERNEL(threads, blocks) __global__ __launch_bounds__(threads, blocks)

namespace daq_mm::cuda {

// ---- indices; blocks have one axis ----

DAQ_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DAQ_DEVICE int block_size() { return static_cast<int>(blockDim.x); }
DAQ_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
DAQ_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }
DAQ_DEVICE int64_t block_x() { return blockIdx.x; }
DAQ_DEVICE int64_t block_y() { return blockIdx.y; }
DAQ_DEVICE int64_t block_z() { return blockIdx.z; }
DAQ_DEVICE int64_t grid_x() { return gridDim.x; }
DAQ_DEVICE int64_t grid_y() { return gridDim.y; }
DAQ_DEVICE int64_t grid_z() { return gridDim.z; }

// ---- memory ----

namespace detail {

template <int bytes>
struct Word;
template <>
struct Word<1> { using type = uint8_t; };
template <>
struct Word<2> { using type = uint16_t; };
template <>
struct Word<4> { using type = uint32_t; };
template <>
struct Word<8> { using type = uint2; };
template <>
struct Word<16> { using type = uint4; };

// One access of sizeof(V) bytes.
template <typename V>
DAQ_DEVICE V read_as(const void* at) {
  using word_t = typename Word<sizeof(V)>::type;
  union { word_t word; V value; } u{*static_cast<const word_t*>(at)};
  return u.value;
}

template <typename V>
DAQ_DEVICE void write_as(void* at, const V& value) {
  using word_t = typename Word<sizeof(V)>::type;
  union { V value; word_t word; } u{value};
  *static_cast<word_t*>(at) = u.word;
}

// `bytes` bytes of device memory into the words, zeros above them, where `wanted`; else the words
// stay. A predicate and not a branch, so that nothing waits for one load before the next ones are
// on their way. Volatile: the compiler leaves loads in their order, and before what uses them.
template <int bytes>
DAQ_DEVICE void read_if(bool wanted, uint64_t at, uint32_t* word) {
#define DAQ_READ_IF(LOAD, PREDICATE, ADDRESS, ...)                                           \
  asm volatile("{.reg .pred p; setp.ne.u32 p, " PREDICATE ", 0; @p ld.global." LOAD           \
               ", [" ADDRESS "];}" : __VA_ARGS__ : "r"(static_cast<uint32_t>(wanted)), "l"(at))
  if constexpr (bytes == 1) {
    DAQ_READ_IF("u8 %0", "%1", "%2", "+r"(word[0]));
  } else if constexpr (bytes == 2) {
    DAQ_READ_IF("u16 %0", "%1", "%2", "+r"(word[0]));
  } else if constexpr (bytes == 4) {
    DAQ_READ_IF("u32 %0", "%1", "%2", "+r"(word[0]));
  } else if constexpr (bytes == 8) {
    DAQ_READ_IF("v2.u32 {%0, %1}", "%2", "%3", "+r"(word[0]), "+r"(word[1]));
  } else {
    static_assert(bytes == 16);
    DAQ_READ_IF("v4.u32 {%0, %1, %2, %3}", "%4", "%5", "+r"(word[0]), "+r"(word[1]),
                "+r"(word[2]), "+r"(word[3]));
  }
#undef DAQ_READ_IF
}

DAQ_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

template <typename T>
class Memory {
 public:
  using value_t = std::remove_const_t<T>;

  DAQ_DEVICE value_t load(int64_t i) const { return data_[i]; }
  DAQ_DEVICE void store(int64_t i, value_t value) const { data_[i] = value; }
  // sizeof(V) bytes from element i on, in one access; the address must be a multiple of that.
  template <typename V>
  DAQ_DEVICE V load_as(int64_t i) const { return read_as<V>(data_ + i); }
  template <typename V>
  DAQ_DEVICE void store_as(int64_t i, const V& value) const { write_as(data_ + i, value); }
  DAQ_DEVICE T* at(int64_t i) const { return data_ + i; }

 protected:
  __host__ __device__ explicit Memory(T* data) : data_(data) {}
  T* data_;
};

}  // namespace detail

// Device memory as a kernel's argument: `count` values, which the emulator enforces.
template <typename T>
class Global : public detail::Memory<T> {
 public:
  __host__ __device__ Global() : detail::Memory<T>(nullptr) {}
  __host__ __device__ Global(T* data, int64_t /*count*/) : detail::Memory<T>(data) {}
  __host__ __device__ bool is_null() const { return this->data_ == nullptr; }
  T* host_pointer() const { return this->data_; }
  // The same memory counted from element i on, which may lie outside of it: accesses may not.
  DAQ_DEVICE Global from(int64_t i) const {
    // One address, else each access would add i to the beginning again; still known as global.
    size_t moved = __cvta_generic_to_global(this->data_ + i);
    asm("" : "+l"(moved));
    return Global(static_cast<T*>(__cvta_global_to_generic(moved)), 0);
  }
  // `bytes` bytes from element i on into words, in one access like load_as, where `wanted`; else
  // the words stay. Fewer than 4 bytes are followed by zeros. The memory may be null if not wanted.
  template <int bytes>
  DAQ_DEVICE void load_if(bool wanted, int64_t i, uint32_t* word) const {
    detail::read_if<bytes>(wanted, reinterpret_cast<uint64_t>(this->data_) + i * sizeof(T), word);
  }
  // Whether the first value's address is a multiple of so many bytes.
  __host__ __device__ bool is_aligned(int64_t bytes) const {
    return reinterpret_cast<uint64_t>(this->data_) % bytes == 0;
  }
};

template <typename T>
Global<const T> read_only(const Global<T>& memory) {
  return Global<const T>(memory.host_pointer(), 0);
}

// A range of the block's dynamic shared memory.
template <typename T>
class Shared : public detail::Memory<T> {
 public:
  DAQ_DEVICE Shared(int64_t byte_offset, int64_t /*count*/) : detail::Memory<T>(base(byte_offset)) {}

 private:
  static DAQ_DEVICE T* base(int64_t byte_offset) {
    // Aligned as the widest rows of compute capability 9.0's copies, eight at a time.
    extern __shared__ __align__(1024) uint4 shared_bytes[];
    return reinterpret_cast<T*>(reinterpret_cast<uint8_t*>(shared_bytes) + byte_offset);
  }
};

// Return what was there. int32, uint32, uint64, float, double for add; int32, uint32, uint64 for
// the others; Global or Shared.
template <typename memory_t>
DAQ_DEVICE auto atomic_add(const memory_t& memory, int64_t i, typename memory_t::value_t value) {
  return atomicAdd(memory.at(i), value);
}
template <typename memory_t>
DAQ_DEVICE auto atomic_max(const memory_t& memory, int64_t i, typename memory_t::value_t value) {
  return atomicMax(memory.at(i), value);
}
template <typename memory_t>
DAQ_DEVICE auto atomic_min(const memory_t& memory, int64_t i, typename memory_t::value_t value) {
  return atomicMin(memory.at(i), value);
}
// uint64 sums: unsigned long long is what the hardware's atomics take.
using Counter = unsigned long long;

// ---- order ----

DAQ_DEVICE void barrier() { __syncthreads(); }
DAQ_DEVICE void warp_barrier() { __syncwarp(); }

// ---- warp-wide operations: all 32 lanes take part ----

template <typename T>
DAQ_DEVICE T shuffle(T value, int from_lane) { return __shfl_sync(0xffffffffu, value, from_lane); }
template <typename T>
DAQ_DEVICE T shuffle_xor(T value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DAQ_DEVICE uint32_t ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }

// Four 8x8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix l / 8 (16
// bytes, aligned); in result m, lane l gets columns 2 (l % 4) and the next of row l / 4.
DAQ_DEVICE void load_matrices(uint32_t (&result)[4], const Shared<uint8_t>& memory, int64_t i) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(detail::shared_address(memory.at(i)))
               : "memory");
}

// The same, transposed: lane l gets rows 2 (l % 4) and the next of column l / 4.
DAQ_DEVICE void load_matrices_transposed(uint32_t (&result)[4], const Shared<uint8_t>& memory,
                                         int64_t i) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(detail::shared_address(memory.at(i)))
               : "memory");
}

#define DAQ_MMA(SHAPE, A, B, D, ...) \
  asm volatile("mma.sync.aligned." SHAPE ".row.col.s32." A "." B ".s32 " D __VA_ARGS__)

#define DAQ_MMA_16832(A, B)                                                            \
  DAQ_MMA("m16n8k32", A, B, "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "           \
                            "{%0, %1, %2, %3};",                                       \
          : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                             \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

#define DAQ_MMA_8816(A, B)                                                             \
  DAQ_MMA("m8n8k16", A, B, "{%0, %1}, {%2}, {%3}, {%0, %1};",                          \
          : "+r"(d0), "+r"(d1) : "r"(a), "r"(b))

namespace detail {

template <typename A, typename B>
DAQ_DEVICE void product_8x8x16(int32_t& d0, int32_t& d1, uint32_t a, uint32_t b) {
  if constexpr (std::is_signed_v<A> && std::is_signed_v<B>) {
    DAQ_MMA_8816("s8", "s8");
  } else if constexpr (std::is_signed_v<A>) {
    DAQ_MMA_8816("s8", "u8");
  } else if constexpr (std::is_signed_v<B>) {
    DAQ_MMA_8816("u8", "s8");
  } else {
    DAQ_MMA_8816("u8", "u8");
  }
}

}  // namespace detail

// d (16, 8) += a (16, 32) * b (32, 8); A and B are int8_t or uint8_t, sums wrap modulo 2**32.
template <typename A, typename B>
DAQ_DEVICE void multiply_add(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  detail::product_8x8x16<A, B>(d[0], d[1], a[0], b[0]);
  detail::product_8x8x16<A, B>(d[2], d[3], a[1], b[0]);
  detail::product_8x8x16<A, B>(d[0], d[1], a[2], b[1]);
  detail::product_8x8x16<A, B>(d[2], d[3], a[3], b[1]);
#else
  if constexpr (std::is_signed_v<A> && std::is_signed_v<B>) {
    DAQ_MMA_16832("s8", "s8");
  } else if constexpr (std::is_signed_v<A>) {
    DAQ_MMA_16832("s8", "u8");
  } else if constexpr (std::is_signed_v<B>) {
    DAQ_MMA_16832("u8", "s8");
  } else {
    DAQ_MMA_16832("u8", "u8");
  }
#endif
}

#undef DAQ_MMA_8816
#undef DAQ_MMA_16832
#undef DAQ_MMA

// Bytes of (low, high) = 0..7 chosen by the four nibbles of the selector.
DAQ_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}

// sum + the products of the four signed bytes.
DAQ_DEVICE int32_t dot_product(uint32_t a, uint32_t b, int32_t sum) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
}

// ---- asynchronous copies of 16 bytes, global to shared ----

DAQ_DEVICE void copy16_async(const Shared<uint8_t>& to, int64_t to_index,
                             const Global<const uint8_t>& from, int64_t from_index) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  to.store_as(to_index, from.load_as<Bytes16>(from_index));
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   detail::shared_address(to.at(to_index))),
               "l"(from.at(from_index))
               : "memory");
#endif
}

// Ends a group of copies.
DAQ_DEVICE void commit_copies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `groups` of this thread's groups, the latest, are in flight.
template <int groups>
DAQ_DEVICE void wait_copies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

// ---- float32 operations, each rounded by itself whatever the compiler's flags ----

DAQ_DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
DAQ_DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
DAQ_DEVICE float subtract(float a, float b) { return __fsub_rn(a, b); }
DAQ_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
DAQ_DEVICE float square_root(float a) { return __fsqrt_rn(a); }
DAQ_DEVICE float round_half_even(float a) { return rintf(a); }
// The smaller and the larger one; NaN if one is.
DAQ_DEVICE float lower_of(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a != a || a < b ? a : b;
#endif
}
DAQ_DEVICE float higher_of(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a != a || a > b ? a : b;
#endif
}
DAQ_DEVICE uint32_t bits_of(float a) { return __float_as_uint(a); }
DAQ_DEVICE float float_of_bits(uint32_t a) { return __uint_as_float(a); }
DAQ_DEVICE uint16_t half_from_float(float a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;  // a conversion of two, which has four times the rate of one
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(a));
  return static_cast<uint16_t>(pair);
#else
  return __half_as_ushort(__float2half_rn(a));
#endif
}
DAQ_DEVICE float float_from_half(uint16_t a) { return __half2float(__ushort_as_half(a)); }

// ---- launch ----

// Runs kernel(args...) on `grid` blocks of `threads` threads (a multiple of 32) with so many bytes
// of shared memory. Raises RuntimeError if the launch is refused.
template <typename... P, typename... A>
void launch(void (*kernel)(P...), Grid grid, int threads, int64_t shared, Stream stream,
            A... args) {
  check_grid(grid);
  constexpr int64_t kWithoutAsking = 48 * 1024;
  if (shared > kWithoutAsking) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared)));
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                    static_cast<unsigned>(grid.z));
  kernel<<<blocks, threads, shared, stream>>>(static_cast<P>(args)...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Writes zeros.
inline void clear(void* data, int64_t bytes, Stream stream) {
  C10_CUDA_CHECK(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), stream));
}

}  // namespace daq_mm::cuda
