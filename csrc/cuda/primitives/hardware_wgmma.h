// wgmma.mma_async.m64nNk32 of bytes, N = 64, 128, 256: an accumulator of N / 2 registers has to be
// spelled out, register by register. Included by hardware_warpgroup.h.
#pragma once

#define DAQ_D4(i) "+r"(d[i][0]), "+r"(d[i][1]), "+r"(d[i][2]), "+r"(d[i][3])
#define DAQ_D16(i) DAQ_D4(i), DAQ_D4(i + 1), DAQ_D4(i + 2), DAQ_D4(i + 3)
#define DAQ_D32(i) DAQ_D16(i), DAQ_D16(i + 4)
#define DAQ_D64(i) DAQ_D32(i), DAQ_D32(i + 8)
#define DAQ_D128(i) DAQ_D64(i), DAQ_D64(i + 16)

#define DAQ_P0_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DAQ_P32_64 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DAQ_P64_128 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// The predicate says to add to the sums instead of replacing them. Behind the types: the operands.
#define DAQ_WGMMA(N, PLACES, SUMS, A_AT, B_AT, TYPE_A, TYPE_B, ...)                     \
  asm volatile("{\n.reg .pred adds;\nsetp.eq.u32 adds, 0, 0;\n"                         \
               "wgmma.mma_async.sync.aligned.m64n" N "k32.s32." TYPE_A "." TYPE_B " {"  \
               PLACES "}, " A_AT ", " B_AT ", adds;\n}"                                 \
               : SUMS                                                                   \
               : __VA_ARGS__)
#define DAQ_WGMMA_64(A, B) \
  DAQ_WGMMA("64", DAQ_P0_32, DAQ_D32(0), "%32", "%33", A, B, "l"(a), "l"(b))
#define DAQ_WGMMA_128(A, B)                                                              \
  DAQ_WGMMA("128", DAQ_P0_32 ", " DAQ_P32_64, DAQ_D64(0), "%64", "%65", A, B, "l"(a), "l"(b))
#define DAQ_WGMMA_256(A, B)                                                             \
  DAQ_WGMMA("256", DAQ_P0_32 ", " DAQ_P32_64 ", " DAQ_P64_128, DAQ_D128(0), "%128", "%129", A, B, \
            "l"(a), "l"(b))
// A from registers.
#define DAQ_A_REGISTERS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define DAQ_WGMMA_64_REGISTERS(A, B)                                                       \
  DAQ_WGMMA("64", DAQ_P0_32, DAQ_D32(0), "{%32, %33, %34, %35}", "%36", A, B, DAQ_A_REGISTERS, \
            "l"(b))
#define DAQ_WGMMA_128_REGISTERS(A, B)                                                         \
  DAQ_WGMMA("128", DAQ_P0_32 ", " DAQ_P32_64, DAQ_D64(0), "{%64, %65, %66, %67}", "%68", A, B, \
            DAQ_A_REGISTERS, "l"(b))

namespace daq_mm::cuda::detail {

template <typename A, typename B>
DAQ_DEVICE void warpgroup_product(int32_t (&d)[8][4], uint64_t a, uint64_t b) {
  static_assert(std::is_signed_v<B>, "right operands are weights or gradients");
  if constexpr (std::is_signed_v<A>) {
    DAQ_WGMMA_64("s8", "s8");
  } else {
    DAQ_WGMMA_64("u8", "s8");
  }
}

template <typename A, typename B>
DAQ_DEVICE void warpgroup_product(int32_t (&d)[16][4], uint64_t a, uint64_t b) {
  static_assert(std::is_signed_v<B>, "right operands are weights or gradients");
  if constexpr (std::is_signed_v<A>) {
    DAQ_WGMMA_128("s8", "s8");
  } else {
    DAQ_WGMMA_128("u8", "s8");
  }
}

template <typename A, typename B>
DAQ_DEVICE void warpgroup_product(int32_t (&d)[32][4], uint64_t a, uint64_t b) {
  static_assert(std::is_signed_v<B>, "right operands are weights or gradients");
  if constexpr (std::is_signed_v<A>) {
    DAQ_WGMMA_256("s8", "s8");
  } else {
    DAQ_WGMMA_256("u8", "s8");
  }
}

// Gradients in registers times activations.
DAQ_DEVICE void warpgroup_product(int32_t (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  DAQ_WGMMA_64_REGISTERS("s8", "u8");
}

DAQ_DEVICE void warpgroup_product(int32_t (&d)[16][4], const uint32_t (&a)[4],
                                         uint64_t b) {
  DAQ_WGMMA_128_REGISTERS("s8", "u8");
}

}  // namespace daq_mm::cuda::detail

#undef DAQ_WGMMA_128_REGISTERS
#undef DAQ_WGMMA_64_REGISTERS
#undef DAQ_A_REGISTERS
#undef DAQ_WGMMA_256
#undef DAQ_WGMMA_128
#undef DAQ_WGMMA_64
#undef DAQ_WGMMA
#undef DAQ_P64_128
#undef DAQ_P32_64
#undef DAQ_P0_32
#undef DAQ_D128
#undef DAQ_D64
#undef DAQ_D32
#undef DAQ_D16
#undef DAQ_D4
