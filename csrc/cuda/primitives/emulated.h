// The primitives on the CPU, for tests: each does what hardware.h does on a GPU, checked by
// emulator.h. Warp-wide products and matrix loads follow the fragment layouts of the PTX ISA,
// written out in fragments() below, not the way a kernel uses them.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <sstream>
#include <tuple>
#include <type_traits>

#include "cuda/primitives/emulator.h"
#include "cuda/primitives/types.h"

#define DAQ_DEVICE inline
#define DAQ_KERNEL(threads, blocks)

namespace daq_mm::cuda {

using emulator::Block;

// ---- indices ----

inline int thread_index() { return Block::current().thread(); }
inline int block_size() { return Block::current().threads(); }
inline int lane_index() { return thread_index() % kWarp; }
inline int warp_index() { return thread_index() / kWarp; }
inline int64_t block_x() { return Block::current().index().x; }
inline int64_t block_y() { return Block::current().index().y; }
inline int64_t block_z() { return Block::current().index().z; }
inline int64_t grid_x() { return Block::current().grid().x; }
inline int64_t grid_y() { return Block::current().grid().y; }
inline int64_t grid_z() { return Block::current().grid().z; }

// ---- memory ----

template <typename T>
class Global {
 public:
  using value_t = std::remove_const_t<T>;

  Global() = default;
  Global(T* data, int64_t count) : data_(data), count_(count) {}
  bool is_null() const { return data_ == nullptr; }
  T* host_pointer() const { return data_; }
  Global from(int64_t i) const {
    Global moved = *this;
    moved.first_ += i;
    return moved;
  }
  int64_t count() const { return count_; }
  // Whether the first value's address is a multiple of so many bytes.
  bool is_aligned(int64_t bytes) const { return reinterpret_cast<uintptr_t>(data_) % bytes == 0; }

  value_t load(int64_t i) const { return *at(i); }
  void store(int64_t i, value_t value) const { *at(i) = value; }
  template <typename V>
  V load_as(int64_t i) const {
    V value;
    std::memcpy(&value, checked(i, sizeof(V), sizeof(V)), sizeof(V));
    return value;
  }
  template <typename V>
  void store_as(int64_t i, const V& value) const {
    std::memcpy(checked(i, sizeof(V), sizeof(V)), &value, sizeof(V));
  }
  template <int bytes>
  void load_if(bool wanted, int64_t i, uint32_t* word) const {
    if (!wanted) return;
    word[0] = 0;
    std::memcpy(word, checked(i, bytes, bytes), bytes);
  }

  T* at(int64_t i) const { return checked(i, sizeof(T), alignof(T)); }
  // The address of `bytes` bytes from element i on.
  T* checked(int64_t i, int64_t bytes, int64_t alignment) const {
    i += first_;
    const int64_t end = i * static_cast<int64_t>(sizeof(T)) + bytes;
    if (i < 0 || end > count_ * static_cast<int64_t>(sizeof(T))) {
      std::ostringstream s;
      s << "out of bounds: " << bytes << " bytes at element " << i << " of a global buffer of "
        << count_ << " elements of " << sizeof(T) << " bytes";
      Block::current().fail(s.str());
    }
    if (reinterpret_cast<uintptr_t>(data_ + i) % alignment != 0) {
      std::ostringstream s;
      s << "misaligned: " << bytes << " bytes at element " << i << " of a global buffer";
      Block::current().fail(s.str());
    }
    return data_ + i;
  }

 private:
  T* data_ = nullptr;
  int64_t count_ = 0;
  int64_t first_ = 0;  // what from() has moved
};

template <typename T>
Global<const T> read_only(const Global<T>& memory) {
  return Global<const T>(memory.host_pointer(), memory.count());
}

template <typename T>
class Shared {
 public:
  using value_t = T;

  Shared(int64_t byte_offset, int64_t count) : offset_(byte_offset), count_(count) {}

  T load(int64_t i) const { return load_as<T>(i); }
  void store(int64_t i, T value) const { store_as<T>(i, value); }
  template <typename V>
  V load_as(int64_t i) const {
    V value;
    std::memcpy(&value, Block::current().shared_for_read(checked(i, sizeof(V)), sizeof(V)),
                sizeof(V));
    return value;
  }
  template <typename V>
  void store_as(int64_t i, const V& value) const {
    std::memcpy(Block::current().shared_for_write(checked(i, sizeof(V)), sizeof(V)), &value,
                sizeof(V));
  }
  T* for_atomic(int64_t i) const {
    return reinterpret_cast<T*>(
        Block::current().shared_for_atomic(checked(i, sizeof(T)), sizeof(T)));
  }

  // The place in the block's shared memory of `bytes` bytes from element i on, aligned to them.
  int64_t checked(int64_t i, int64_t bytes) const {
    constexpr int64_t kSize = sizeof(T);
    const int64_t offset = offset_ + i * kSize;
    if (i < 0 || i * kSize + bytes > count_ * kSize || offset % bytes != 0) {
      std::ostringstream s;
      s << (offset % bytes != 0 ? "misaligned: " : "out of bounds: ") << bytes
        << " bytes at element " << i << " of a shared range of " << count_ << " elements of "
        << kSize << " bytes";
      Block::current().fail(s.str());
    }
    return offset;
  }

 private:
  int64_t offset_;
  int64_t count_;
};

using Counter = unsigned long long;

namespace detail {

template <typename T>
T* atomic_place(const Global<T>& memory, int64_t i) { return memory.at(i); }
template <typename T>
T* atomic_place(const Shared<T>& memory, int64_t i) { return memory.for_atomic(i); }

template <typename memory_t, typename F>
auto atomically(const memory_t& memory, int64_t i, F change) {
  auto* place = atomic_place(memory, i);
  const auto old = *place;
  *place = change(old);
  return old;
}

}  // namespace detail

template <typename memory_t>
auto atomic_add(const memory_t& memory, int64_t i, typename memory_t::value_t value) {
  using value_t = typename memory_t::value_t;
  return detail::atomically(memory, i, [&](value_t old) {
    if constexpr (std::is_integral_v<value_t>) {  // wraps
      using unsigned_t = std::make_unsigned_t<value_t>;
      return static_cast<value_t>(static_cast<unsigned_t>(old) + static_cast<unsigned_t>(value));
    } else {
      return old + value;
    }
  });
}
template <typename memory_t>
auto atomic_max(const memory_t& memory, int64_t i, typename memory_t::value_t value) {
  return detail::atomically(memory, i, [&](auto old) { return std::max(old, value); });
}
template <typename memory_t>
auto atomic_min(const memory_t& memory, int64_t i, typename memory_t::value_t value) {
  return detail::atomically(memory, i, [&](auto old) { return std::min(old, value); });
}

// ---- order ----

inline void barrier() { Block::current().barrier(); }
inline void warp_barrier() {
  Block::current().together<char, char>(emulator::Collective::kWarpBarrier, 0,
                                        [](const char*, char*) {});
}

// ---- warp-wide operations ----

template <typename T>
T shuffle(T value, int from_lane) {
  struct In { T value; int from; };
  return Block::current().together<In, T>(
      emulator::Collective::kShuffle, {value, from_lane}, [](const In* in, T* out) {
        for (int l = 0; l < kWarp; ++l) out[l] = in[in[l].from & (kWarp - 1)].value;
      });
}

template <typename T>
T shuffle_xor(T value, int mask) {
  struct In { T value; int mask; };
  return Block::current().together<In, T>(
      emulator::Collective::kShuffleXor, {value, mask}, [](const In* in, T* out) {
        for (int l = 0; l < kWarp; ++l) out[l] = in[(l ^ in[l].mask) & (kWarp - 1)].value;
      });
}

inline uint32_t ballot(bool predicate) {
  return Block::current().together<bool, uint32_t>(
      emulator::Collective::kBallot, predicate, [](const bool* in, uint32_t* out) {
        uint32_t bits = 0;
        for (int l = 0; l < kWarp; ++l) bits |= static_cast<uint32_t>(in[l]) << l;
        std::fill_n(out, kWarp, bits);
      });
}

namespace detail {

struct Registers4 {
  uint32_t of[4];
};

// ldmatrix: four 8x8 matrices of 16-bit values whose rows lie where the lanes say.
inline void load_matrices(uint32_t (&result)[4], const Shared<uint8_t>& memory, int64_t i,
                          bool transposed) {
  auto& block = Block::current();
  struct In { uint16_t row[8]; };
  In mine;
  std::memcpy(mine.row, block.shared_for_read(memory.checked(i, 16), 16), 16);
  const auto operation = transposed ? emulator::Collective::kLoadMatricesTransposed
                                    : emulator::Collective::kLoadMatrices;
  const auto registers = block.together<In, Registers4>(
      operation, mine, [transposed](const In* in, Registers4* out) {
        for (int l = 0; l < kWarp; ++l) {
          for (int m = 0; m < 4; ++m) {
            const In* rows = in + 8 * m;
            const int a = l / 4, b = 2 * (l % 4);
            const uint32_t low = transposed ? rows[b].row[a] : rows[a].row[b];
            const uint32_t high = transposed ? rows[b + 1].row[a] : rows[a].row[b + 1];
            out[l].of[m] = low | high << 16;
          }
        }
      });
  std::copy_n(registers.of, 4, result);
}

template <typename T>
int32_t byte_of(uint32_t word, int i) { return static_cast<T>(word >> (8 * i) & 0xff); }

}  // namespace detail

inline void load_matrices(uint32_t (&result)[4], const Shared<uint8_t>& memory, int64_t i) {
  detail::load_matrices(result, memory, i, false);
}
inline void load_matrices_transposed(uint32_t (&result)[4], const Shared<uint8_t>& memory,
                                     int64_t i) {
  detail::load_matrices(result, memory, i, true);
}

// mma.m16n8k32 of bytes. With group = lane / 4 and member = lane % 4, byte j of
//   a[0..3] is A[group + 8 (r % 2)][16 (r / 2) + 4 member + j],
//   b[0..1] is B[16 r + 4 member + j][group],
// and d[r] is D[group + 8 (r / 2)][2 member + r % 2].
template <typename A, typename B>
void multiply_add(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct In { uint32_t a[4]; uint32_t b[2]; uint32_t d[4]; };
  In mine;
  std::copy_n(a, 4, mine.a);
  std::copy_n(b, 2, mine.b);
  for (int r = 0; r < 4; ++r) mine.d[r] = static_cast<uint32_t>(d[r]);
  const auto result = Block::current().together<In, detail::Registers4>(
      emulator::Collective::kMultiplyAdd, mine, [](const In* in, detail::Registers4* out) {
        int32_t left[16][32], right[8][32];  // right: B transposed
        for (int l = 0; l < kWarp; ++l) {
          const int group = l / 4, member = l % 4;
          for (int j = 0; j < 4; ++j) {
            for (int r = 0; r < 4; ++r) {
              left[group + 8 * (r % 2)][16 * (r / 2) + 4 * member + j] =
                  detail::byte_of<A>(in[l].a[r], j);
            }
            for (int r = 0; r < 2; ++r) {
              right[group][16 * r + 4 * member + j] = detail::byte_of<B>(in[l].b[r], j);
            }
          }
        }
        for (int l = 0; l < kWarp; ++l) {
          for (int r = 0; r < 4; ++r) {
            const int32_t* row = left[l / 4 + 8 * (r / 2)];
            const int32_t* column = right[2 * (l % 4) + r % 2];
            int32_t sum = 0;  // at most 32 * 255 * 255
            for (int k = 0; k < 32; ++k) sum += row[k] * column[k];
            out[l].of[r] = in[l].d[r] + static_cast<uint32_t>(sum);
          }
        }
      });
  for (int r = 0; r < 4; ++r) d[r] = static_cast<int32_t>(result.of[r]);
}

inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t from = selector >> (4 * i) & 7;
    result |= static_cast<uint32_t>(both >> (8 * from) & 0xff) << (8 * i);
  }
  return result;
}

// sum + the products of the four signed bytes.
inline int32_t dot_product(uint32_t a, uint32_t b, int32_t sum) {
  for (int i = 0; i < 4; ++i) sum += detail::byte_of<int8_t>(a, i) * detail::byte_of<int8_t>(b, i);
  return sum;
}

// ---- asynchronous copies: the bytes arrive at the wait, not before ----

inline void copy16_async(const Shared<uint8_t>& to, int64_t to_index,
                         const Global<const uint8_t>& from, int64_t from_index) {
  const auto* source = reinterpret_cast<const std::byte*>(from.checked(from_index, 16, 16));
  Block::current().copy_async(to.checked(to_index, 16), source, 16);
}
inline void commit_copies() { Block::current().commit_copies(); }
template <int groups>
void wait_copies() { Block::current().wait_copies(groups); }

// ---- float32 operations; compiled with -ffp-contract=off ----

inline float multiply(float a, float b) { return a * b; }
inline float add(float a, float b) { return a + b; }
inline float subtract(float a, float b) { return a - b; }
inline float divide(float a, float b) { return a / b; }
inline float square_root(float a) { return std::sqrt(a); }
inline float round_half_even(float a) { return std::nearbyint(a); }
inline float lower_of(float a, float b) { return std::isnan(a) || a < b ? a : b; }
inline float higher_of(float a, float b) { return std::isnan(a) || a > b ? a : b; }
inline uint32_t bits_of(float a) { return std::bit_cast<uint32_t>(a); }
inline float float_of_bits(uint32_t a) { return std::bit_cast<float>(a); }
inline uint16_t half_from_float(float a) {
  return std::bit_cast<uint16_t>(static_cast<_Float16>(a));
}
inline float float_from_half(uint16_t a) {
  return static_cast<float>(std::bit_cast<_Float16>(a));
}

// ---- launch ----

template <typename... P, typename... A>
void launch(void (*kernel)(P...), Grid grid, int threads, int64_t shared, Stream /*stream*/,
            A... args) {
  check_grid(grid);
  const std::tuple<P...> arguments(static_cast<P>(args)...);
  emulator::run(grid, threads, shared, [&] { std::apply(kernel, arguments); });
}

inline void clear(void* data, int64_t bytes, Stream /*stream*/) { std::memset(data, 0, bytes); }

}  // namespace daq_mm::cuda
