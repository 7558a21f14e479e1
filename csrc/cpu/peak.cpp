// Register-only INT8 micro-benchmarks, one an instruction set; see peak.h.
//
// Each kernel keeps a dozen independent accumulators, more than latency times issue width of any
// processor so far, and reads no memory in its loop. Results go through an empty asm statement,
// so that the compiler can neither drop the loop nor fold it.

#include "cpu/peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include "cpu/capability.h"

namespace daq_mm::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// Rounds of a kernel between two looks at the clock: about 10 microseconds.
constexpr int kRounds = 2048;

// Operations of one call of each kernel below.
constexpr double kVnniOps = 12.0 * 64 * 2 * kRounds;
constexpr double kAvx2Ops = 12.0 * 16 * 2 * kRounds;
constexpr int kScalarLength = 1024;
constexpr double kScalarOps = 2.0 * kScalarLength * 32;

#if defined(__x86_64__)

#define DAQ_MM_TWELVE(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)

__attribute__((target("avx512f,avx512vnni"))) void vnni_rounds() {
  const __m512i u = _mm512_set1_epi8(3);
  const __m512i s = _mm512_set1_epi8(-2);
#define DAQ_MM_DECLARE(i) __m512i a##i = _mm512_setzero_si512();
#define DAQ_MM_STEP(i) asm volatile("vpdpbusd %2, %1, %0" : "+v"(a##i) : "v"(u), "v"(s));
  DAQ_MM_TWELVE(DAQ_MM_DECLARE)
  for (int round = 0; round < kRounds; ++round) {
    DAQ_MM_TWELVE(DAQ_MM_STEP)
  }
#undef DAQ_MM_DECLARE
#undef DAQ_MM_STEP
}

__attribute__((target("avx2"))) void avx2_rounds() {
  const __m256i x = _mm256_set1_epi16(3);
  const __m256i y = _mm256_set1_epi16(-2);
#define DAQ_MM_DECLARE(i) __m256i a##i = _mm256_setzero_si256();
#define DAQ_MM_STEP(i)                                                              \
  {                                                                                 \
    __m256i product;                                                                \
    asm volatile("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"                         \
                 : "+x"(a##i), "=&x"(product)                                       \
                 : "x"(x), "x"(y));                                                 \
  }
  DAQ_MM_TWELVE(DAQ_MM_DECLARE)
  for (int round = 0; round < kRounds; ++round) {
    DAQ_MM_TWELVE(DAQ_MM_STEP)
  }
#undef DAQ_MM_DECLARE
#undef DAQ_MM_STEP
}

#undef DAQ_MM_TWELVE

#endif  // __x86_64__

void scalar_rounds() {
  int16_t x[kScalarLength];
  int16_t y[kScalarLength];
  std::fill(x, x + kScalarLength, static_cast<int16_t>(3));
  std::fill(y, y + kScalarLength, static_cast<int16_t>(-2));
  for (int round = 0; round < 32; ++round) {
    // The compiler must take the arrays as changed, or it would compute one round only.
    asm volatile("" : : "r"(x), "r"(y) : "memory");
    int32_t sum = 0;
    for (int i = 0; i < kScalarLength; ++i) sum += static_cast<int32_t>(x[i]) * y[i];
    asm volatile("" : : "r"(sum));
  }
}

struct Kernel {
  void (*run)();
  double ops;
};

Kernel kernel_in_use() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::kAVX512VNNI:
      return {vnni_rounds, kVnniOps};
    case Capability::kAVX2:
      return {avx2_rounds, kAvx2Ops};
    case Capability::kScalar:
      break;
  }
#endif
  return {scalar_rounds, kScalarOps};
}

// Operations a second of one thread, from the fastest half millisecond: other processes and virtual
// machines take the processor away now and then, and that is not what a peak is about.
double thread_rate(const Kernel& kernel, double seconds) {
  constexpr double kPart = 0.0005;
  double best = 0.0;
  const auto start = Clock::now();
  while (std::chrono::duration<double>(Clock::now() - start).count() < seconds) {
    const auto begin = Clock::now();
    int64_t calls = 0;
    double elapsed = 0.0;
    do {
      for (int i = 0; i < 8; ++i) kernel.run();
      calls += 8;
      elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
    } while (elapsed < kPart);
    best = std::max(best, kernel.ops * static_cast<double>(calls) / elapsed);
  }
  return best;
}

}  // namespace

double peak_gops(double seconds) {
  TORCH_CHECK_VALUE(seconds >= 0.001 && seconds <= 10.0, "seconds=", seconds,
                    " must be in [0.001, 10]");
  const Kernel kernel = kernel_in_use();
  const int threads = at::get_num_threads();
  std::vector<double> rates(threads, 0.0);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) rates[i] = thread_rate(kernel, seconds);
  });
  double total = 0.0;
  for (const double rate : rates) total += rate;
  return total / 1e9;
}

}  // namespace daq_mm::cpu
