// The transposing store of contiguous results; see store_planes.h.

#include "cpu/store_planes.h"

#include "cpu/capability.h"

namespace daq_mm::cpu {
namespace {

template <typename T>
void store(const T* block, int64_t row, int64_t pixels, int64_t lanes, const int64_t* at, T* out,
           int64_t first_channel, int64_t channels, int64_t plane) {
  int64_t p = 0;
  while (p < pixels) {
    // A run of pixels of one image, at equal distances.
    const int64_t image = at[p] / plane;
    const int64_t end_of_image = (image + 1) * plane;
    const int64_t step = p + 1 < pixels ? at[p + 1] - at[p] : 1;
    int64_t end = p + 1;
    while (end < pixels && at[end] < end_of_image && at[end] - at[end - 1] == step) ++end;
    T* to = out + (image * channels + first_channel) * plane + (at[p] - image * plane);
    const T* from = block + p * row;
#if defined(__x86_64__)
    if (step == 1 && capability() == Capability::kAVX512VNNI) {
      constexpr int64_t kElement = sizeof(T);
      store_run_avx512(reinterpret_cast<const uint8_t*>(from), row * kElement, end - p, lanes,
                       kElement, reinterpret_cast<uint8_t*>(to), plane * kElement);
      p = end;
      continue;
    }
#endif
    // Four lanes together, so that a line of `block` is used before it leaves the cache.
    int64_t lane = 0;
    for (; lane + 4 <= lanes; lane += 4) {
      for (int64_t i = 0; i < end - p; ++i) {
        for (int64_t j = 0; j < 4; ++j) {
          to[(lane + j) * plane + i * step] = from[i * row + lane + j];
        }
      }
    }
    for (; lane < lanes; ++lane) {
      for (int64_t i = 0; i < end - p; ++i) to[lane * plane + i * step] = from[i * row + lane];
    }
    p = end;
  }
}

}  // namespace

void store_planes(const uint8_t* block, int64_t row, int64_t pixels, int64_t lanes,
                  int64_t element, const int64_t* at, uint8_t* out, int64_t first_channel,
                  int64_t channels, int64_t plane) {
  if (element == 4) {
    store(reinterpret_cast<const uint32_t*>(block), row, pixels, lanes, at,
          reinterpret_cast<uint32_t*>(out), first_channel, channels, plane);
  } else {
    store(reinterpret_cast<const uint16_t*>(block), row, pixels, lanes, at,
          reinterpret_cast<uint16_t*>(out), first_channel, channels, plane);
  }
}

}  // namespace daq_mm::cpu
