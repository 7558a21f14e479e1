// Kernels that the tests of the emulator and of the primitives run: tests/test_cuda_emulator.py.
// Each is registered as an op of daq_mm_emulated on CPU tensors.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "absolute_maximum.h"
#include "cuda/primitives/emulator_host.h"
#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda {
namespace {

// D = A B + C of one tensor-core product, (16, 32) x (32, 8), each lane fetching its fragments
// from row-major memory by the tables of the PTX ISA.
template <typename A, typename B>
void product_kernel(Global<const A> a, Global<const B> b, Global<int32_t> d) {
  const int group = lane_index() >> 2;
  const int member = lane_index() & 3;
  uint32_t fa[4] = {}, fb[2] = {};
  for (int i = 0; i < 16; ++i) {  // a_i of the table: i / 4 is the register
    const int row = (i < 4 || (i >= 8 && i < 12)) ? group : group + 8;
    const int column = member * 4 + (i & 3) + (i < 8 ? 0 : 16);
    fa[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(a.load(row * 32 + column)))
                 << (8 * (i & 3));
  }
  for (int i = 0; i < 8; ++i) {
    const int row = member * 4 + (i & 3) + (i < 4 ? 0 : 16);
    fb[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(b.load(row * 8 + group)))
                 << (8 * (i & 3));
  }
  int32_t fd[4];
  for (int i = 0; i < 4; ++i) {
    fd[i] = d.load((i < 2 ? group : group + 8) * 8 + member * 2 + (i & 1));
  }
  multiply_add<A, B>(fd, fa, fb);
  for (int i = 0; i < 4; ++i) {
    d.store((i < 2 ? group : group + 8) * 8 + member * 2 + (i & 1), fd[i]);
  }
}

template <typename A, typename B>
void run_product(const at::Tensor& a, const at::Tensor& b, at::Tensor& d) {
  launch(product_kernel<A, B>, Grid{}, kWarp, 0, nullptr,
         Global<const A>(a.const_data_ptr<A>(), a.numel()),
         Global<const B>(b.const_data_ptr<B>(), b.numel()),
         Global<int32_t>(d.mutable_data_ptr<int32_t>(), d.numel()));
}

at::Tensor product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  at::Tensor d = c.clone();
  const bool signed_a = a.scalar_type() == at::kChar, signed_b = b.scalar_type() == at::kChar;
  if (signed_a && signed_b) run_product<int8_t, int8_t>(a, b, d);
  if (signed_a && !signed_b) run_product<int8_t, uint8_t>(a, b, d);
  if (!signed_a && signed_b) run_product<uint8_t, int8_t>(a, b, d);
  if (!signed_a && !signed_b) run_product<uint8_t, uint8_t>(a, b, d);
  return d;
}

// 32 rows of 16 bytes through shared memory and ldmatrix: registers (lane, 4).
void matrices_kernel(Global<const uint8_t> rows, bool transposed, Global<int32_t> registers) {
  const Shared<uint8_t> memory(64, 32 * 16);
  const int lane = lane_index();
  memory.store_as(lane * 16, rows.load_as<Bytes16>(lane * 16));
  warp_barrier();
  uint32_t result[4];
  if (transposed) {
    load_matrices_transposed(result, memory, lane * 16);
  } else {
    load_matrices(result, memory, lane * 16);
  }
  for (int m = 0; m < 4; ++m) registers.store(lane * 4 + m, static_cast<int32_t>(result[m]));
}

at::Tensor matrices(const at::Tensor& rows, bool transposed) {
  at::Tensor registers = at::empty({32, 4}, rows.options().dtype(at::kInt));
  launch(matrices_kernel, Grid{}, kWarp, 64 + 512, nullptr,
         Global<const uint8_t>(rows.const_data_ptr<uint8_t>(), rows.numel()), transposed,
         Global<int32_t>(registers.mutable_data_ptr<int32_t>(), registers.numel()));
  return registers;
}

// values (64,) of two warps -> (5, 64): from lane 3, from the next lane, from lane ^ 5, the
// ballot of odd values, the warp's sum.
void lanes_kernel(Global<const int32_t> values, Global<int32_t> results) {
  const int t = thread_index();
  const int32_t mine = values.load(t);
  results.store(t, shuffle(mine, 3));
  results.store(64 + t, shuffle(mine, lane_index() + 1));
  results.store(128 + t, shuffle_xor(mine, 5));
  results.store(192 + t, static_cast<int32_t>(ballot(mine % 2 != 0)));
  results.store(256 + t, reduce_warp(mine, [](int32_t a, int32_t b) { return a + b; }));
}

at::Tensor lanes(const at::Tensor& values) {
  at::Tensor results = at::empty({5, 64}, values.options());
  launch(lanes_kernel, Grid{}, 2 * kWarp, 0, nullptr,
         Global<const int32_t>(values.const_data_ptr<int32_t>(), 64),
         Global<int32_t>(results.mutable_data_ptr<int32_t>(), 320));
  return results;
}

// Each of 64 threads copies 16 bytes of each of `count` groups; waits for all but `in_flight`;
// reads its neighbour's bytes of group `read`.
void copies_kernel(Global<const uint8_t> from, int count, int in_flight, int read,
                   Global<uint8_t> to) {
  const Shared<uint8_t> memory(0, 4 * 1024);
  const int t = thread_index();
  for (int g = 0; g < count; ++g) {
    copy16_async(memory, g * 1024 + t * 16, from, g * 1024 + t * 16);
    commit_copies();
  }
  if (in_flight == 0) wait_copies<0>();
  if (in_flight == 1) wait_copies<1>();
  if (in_flight == 2) wait_copies<2>();
  barrier();
  const int neighbour = (t + 1) % 64;
  to.store_as(neighbour * 16, memory.load_as<Bytes16>(read * 1024 + neighbour * 16));
  wait_copies<0>();
}

at::Tensor copies(const at::Tensor& from, int64_t in_flight, int64_t read) {
  at::Tensor to = at::zeros({1024}, from.options());
  const int count = static_cast<int>(from.numel() / 1024);
  launch(copies_kernel, Grid{}, 64, 4 * 1024, nullptr,
         Global<const uint8_t>(from.const_data_ptr<uint8_t>(), from.numel()), count,
         static_cast<int>(in_flight), static_cast<int>(read),
         Global<uint8_t>(to.mutable_data_ptr<uint8_t>(), to.numel()));
  return to;
}

// Faults, each of which the emulator must name; 'none' must pass.
enum class Fault : int {
  kNone, kReadBeyond, kReadBefore, kReadIfBeyond, kWriteBeyond, kMisaligned, kMisalignedIf,
  kSharedBeyond, kSharedRange, kDivergentBarrier, kEndedBeforeBarrier, kDivergentWarp, kMissingLane,
  kRaceOfWarps, kRaceInWarp, kWriteAfterRead, kUnwritten, kCopyInFlightAtEnd, kCopyBeyond,
  kOverwriteInFlight,
};

void fault_kernel(Fault fault, Global<const int32_t> in, Global<int32_t> out) {
  const int t = thread_index();
  const Shared<int32_t> memory(0, 64);
  memory.store(t, in.load(t));
  barrier();
  int32_t value = memory.load(t ^ 33);
  uint32_t words[2] = {1, 2};
  switch (fault) {
    case Fault::kNone: {  // what is not wanted may lie anywhere, and changes nothing
      in.load_if<8>(false, 1000, words);
      value += static_cast<int32_t>(words[0] + words[1]) - 3;
      in.load_if<4>(true, t, words);
      value += static_cast<int32_t>(words[0]) - in.load(t);
      words[0] = ~0u;
      in.load_if<1>(true, t, words);
      value += static_cast<int32_t>(words[0]) - (in.load(t) & 0xff);
      break;
    }
    case Fault::kReadBeyond: value += in.load(t + 1); break;
    case Fault::kReadBefore: value += in.load(t - 1); break;
    case Fault::kReadIfBeyond: in.load_if<4>(true, t + 1, words); break;
    case Fault::kWriteBeyond: out.store(t + 1, 0); break;
    case Fault::kMisaligned:
      if (t == 1) value += static_cast<int32_t>(in.load_as<Bytes16>(t).word[0]);
      break;
    case Fault::kMisalignedIf: if (t == 1) in.load_if<8>(true, t, words); break;
    case Fault::kSharedBeyond: value += Shared<int32_t>(0, 1000).load(t + 400); break;
    case Fault::kSharedRange: value += Shared<int32_t>(0, 32).load(t); break;
    case Fault::kDivergentBarrier: if (t < 32) barrier(); break;
    case Fault::kEndedBeforeBarrier: if (t == 5) return; barrier(); break;
    case Fault::kDivergentWarp:
      value += t % 2 == 0 ? shuffle(value, 0) : shuffle_xor(value, 1);
      break;
    case Fault::kMissingLane: if (t != 7) value += shuffle(value, 0); break;
    case Fault::kRaceOfWarps:
      barrier();
      memory.store(t, value);
      value += memory.load((t + 32) % 64);
      break;
    case Fault::kRaceInWarp:
      barrier();
      memory.store(t, value);
      value += memory.load(t ^ 1);
      break;
    case Fault::kWriteAfterRead: memory.store(t, value); break;
    case Fault::kUnwritten: value += Shared<int32_t>(256, 64).load(t); break;
    case Fault::kCopyInFlightAtEnd:
    case Fault::kCopyBeyond:
    case Fault::kOverwriteInFlight: {
      const Shared<uint8_t> bytes(256, 64 * 16);
      const Global<const uint8_t> from(reinterpret_cast<const uint8_t*>(in.at(0)), 256);
      copy16_async(bytes, t * 16, from, fault == Fault::kCopyBeyond ? 256 : 0);
      if (fault == Fault::kOverwriteInFlight) bytes.store(t * 16, uint8_t{1});
      break;
    }
  }
  out.store(t, value);
}

at::Tensor fault(const at::Tensor& values, int64_t which) {
  at::Tensor out = at::empty_like(values);
  launch(fault_kernel, Grid{}, 64, 256 + 1024, nullptr, static_cast<Fault>(which),
         Global<const int32_t>(values.const_data_ptr<int32_t>(), 64),
         Global<int32_t>(out.mutable_data_ptr<int32_t>(), 64));
  return out;
}

// Lanes of a warp hand values on through shared memory with nothing but warp barriers.
void warp_exchange_kernel(Global<const int32_t> in, Global<int32_t> out) {
  const int t = thread_index();
  const Shared<int32_t> memory(0, 64);
  int32_t value = in.load(t);
  for (int round = 0; round < 3; ++round) {
    memory.store(t, value);
    warp_barrier();
    value = memory.load(t / kWarp * kWarp + (t + 1) % kWarp);
    warp_barrier();
  }
  out.store(t, value);
}

at::Tensor warp_exchange(const at::Tensor& values) {
  at::Tensor out = at::empty_like(values);
  launch(warp_exchange_kernel, Grid{}, 64, 256, nullptr,
         Global<const int32_t>(values.const_data_ptr<int32_t>(), 64),
         Global<int32_t>(out.mutable_data_ptr<int32_t>(), 64));
  return out;
}

// (values as bfloat16 words, as float16 words) of float32 values.
std::tuple<at::Tensor, at::Tensor> narrow(const at::Tensor& values) {
  at::Tensor bfloat16 = at::empty(values.sizes(), values.options().dtype(at::kShort));
  at::Tensor half = at::empty_like(bfloat16);
  for (int64_t i = 0; i < values.numel(); ++i) {
    const float value = values.const_data_ptr<float>()[i];
    bfloat16.mutable_data_ptr<int16_t>()[i] = static_cast<int16_t>(bfloat16_from_float(value));
    half.mutable_data_ptr<int16_t>()[i] = static_cast<int16_t>(half_from_float(value));
  }
  return {bfloat16, half};
}

// (float32 of all 65536 bfloat16 words, of all float16 words).
std::tuple<at::Tensor, at::Tensor> widen() {
  at::Tensor bfloat16 = at::empty({65536}, at::kFloat), half = at::empty({65536}, at::kFloat);
  for (int i = 0; i < 65536; ++i) {
    bfloat16.mutable_data_ptr<float>()[i] = float_from_bfloat16(static_cast<uint16_t>(i));
    half.mutable_data_ptr<float>()[i] = float_from_half(static_cast<uint16_t>(i));
  }
  return {bfloat16, half};
}

at::Tensor permute(const at::Tensor& low, const at::Tensor& high, const at::Tensor& selector) {
  at::Tensor result = at::empty_like(low);
  for (int64_t i = 0; i < low.numel(); ++i) {
    result.mutable_data_ptr<int32_t>()[i] = static_cast<int32_t>(
        permute_bytes(static_cast<uint32_t>(low.const_data_ptr<int32_t>()[i]),
                      static_cast<uint32_t>(high.const_data_ptr<int32_t>()[i]),
                      static_cast<uint32_t>(selector.const_data_ptr<int32_t>()[i])));
  }
  return result;
}

at::Tensor maximum(const at::Tensor& x) {
  at::Tensor result = at::empty({1}, at::kInt);
  absolute_maximum(x.const_data_ptr<float>(), x.numel(),
                   reinterpret_cast<uint32_t*>(result.mutable_data_ptr<int32_t>()), nullptr);
  return result.view(at::kFloat);
}

void set_schedule(int64_t seed) { emulator::set_schedule(static_cast<uint64_t>(seed)); }
void set_multiprocessors(int64_t count, int64_t shared_bytes) {
  emulator::set_multiprocessors(static_cast<int>(count), shared_bytes);
}
void set_warpgroups(bool present) { emulator::set_warpgroups(present); }
void set_clock(at::ArrayRef<double> seconds) { emulator::set_clock(seconds.vec()); }
void set_capturing(bool value) { emulator::set_capturing(value); }
void log_launches(bool value) { emulator::log_launches(value); }

// Of each launch: blocks on three axes, threads, bytes of shared memory.
std::vector<int64_t> logged_launches() {
  std::vector<int64_t> found;
  for (const auto& [grid, threads, shared] : emulator::logged_launches()) {
    found.insert(found.end(), {grid.x, grid.y, grid.z, threads, shared});
  }
  return found;
}

}  // namespace
}  // namespace daq_mm::cuda

TORCH_LIBRARY_FRAGMENT(daq_mm_emulated, m) {
  using namespace daq_mm::cuda;
  m.def("product(Tensor a, Tensor b, Tensor c) -> Tensor", &product);
  m.def("matrices(Tensor rows, bool transposed) -> Tensor", &matrices);
  m.def("lanes(Tensor values) -> Tensor", &lanes);
  m.def("copies(Tensor source, int in_flight, int read) -> Tensor", &copies);
  m.def("fault(Tensor values, int which) -> Tensor", &fault);
  m.def("warp_exchange(Tensor values) -> Tensor", &warp_exchange);
  m.def("narrow(Tensor values) -> (Tensor, Tensor)", &narrow);
  m.def("widen() -> (Tensor, Tensor)", &widen);
  m.def("permute(Tensor low, Tensor high, Tensor selector) -> Tensor", &permute);
  m.def("maximum(Tensor x) -> Tensor", &maximum);
  m.def("set_schedule(int seed) -> ()", &set_schedule);
  m.def("set_multiprocessors(int count, int shared_bytes=233472) -> ()", &set_multiprocessors);
  m.def("set_warpgroups(bool present) -> ()", &set_warpgroups);
  m.def("set_clock(float[] seconds) -> ()", &set_clock);
  m.def("clock_readings() -> int", &emulator::clock_readings);
  m.def("set_capturing(bool value) -> ()", &set_capturing);
  m.def("log_launches(bool value) -> ()", &log_launches);
  m.def("logged_launches() -> int[]", &logged_launches);
}
