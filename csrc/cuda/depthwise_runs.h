// What the depthwise kernels share: pieces of channels come to registers, words of a position's
// channels become words of a channel's positions, and threads walk from run to run.
#pragma once

#include <algorithm>

#include "cuda/conv_tile.h"
#include "cuda/depthwise_sizes.h"
#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda {

// Unsigned bytes minus 128 are signed ones, which is what dot products take; zero points likewise.
constexpr uint32_t kSignBits = 0x80808080u;

// What a thread reads of a tensor of bytes: its piece of channels.
// whole: four channels at an address that is a multiple of four; else they are read byte by byte,
// those that exist.
template <bool whole>
struct PieceSource {
  Global<const uint8_t> memory;  // from the piece's first channel at the tensor's first position on
  int channels;                  // of the piece
  uint32_t flip;                 // kSignBits for unsigned bytes, else 0
  uint32_t outside;              // what to read where there is no position; flipped already

  // The same, counted from another position, at so many values from here.
  DAQ_DEVICE PieceSource from(int64_t values) const {
    return {memory.from(values), channels, flip, outside};
  }
  DAQ_DEVICE uint32_t load(int64_t at, bool inside) const {
    uint32_t word = outside;
    if (inside) {
      if constexpr (whole) {
        word = memory.load_as<uint32_t>(at) ^ flip;
      } else {
        uint32_t bytes = 0;
#pragma unroll
        for (int c = 0; c < kPiece; ++c) {
          if (c < channels) bytes |= static_cast<uint32_t>(memory.load(at + c)) << (8 * c);
        }
        word = bytes ^ flip;
      }
    }
    return word;
  }
};

// How far a step over so many runs goes in a grid of them: parameters, so that no thread divides.
inline GridPosition step_of(int64_t runs, const int (&counts)[3], int64_t images) {
  GridPosition step;
  for (int axis = 2; axis >= 0; --axis) {
    step.at[axis] = static_cast<int>(runs % counts[axis]);
    runs /= counts[axis];
  }
  step.image = static_cast<int>(std::min(runs, images));
  return step;
}

// The place of a position within its image, as if it were inside; of no meaning if it is not.
DAQ_DEVICE int place_in_image(int d, int h, int w, const int (&size)[3]) {
  const auto u = [](int i) { return static_cast<uint32_t>(i); };
  return static_cast<int>((u(d) * u(size[1]) + u(h)) * u(size[2]) + u(w));
}

// The word of a byte in all four places.
DAQ_DEVICE uint32_t four_of(uint32_t byte) { return byte * 0x01010101u; }

// Byte c of position[i] becomes byte i of channel[c]. Of less than four positions, the other bytes
// are of no meaning.
template <int count>
DAQ_DEVICE void transpose_bytes(const uint32_t (&position)[count], uint32_t (&channel)[kPiece]) {
  if constexpr (count == 1) {
#pragma unroll
    for (int c = 0; c < kPiece; ++c) channel[c] = position[0] >> (8 * c);
  } else {
    const uint32_t low = permute_bytes(position[0], position[1], 0x5140);
    const uint32_t high = permute_bytes(position[0], position[1], 0x7362);
    if constexpr (count == 2) {
      channel[0] = low;
      channel[1] = low >> 16;
      channel[2] = high;
      channel[3] = high >> 16;
    } else {
      const uint32_t next_low = permute_bytes(position[2], position[count - 1], 0x5140);
      const uint32_t next_high = permute_bytes(position[2], position[count - 1], 0x7362);
      channel[0] = permute_bytes(low, next_low, 0x5410);
      channel[1] = permute_bytes(low, next_low, 0x7632);
      channel[2] = permute_bytes(high, next_high, 0x5410);
      channel[3] = permute_bytes(high, next_high, 0x7632);
    }
  }
}

// A line of `count` neighbouring positions, turned: byte i % 4 of word[i / 4][c] is position i.
template <int count>
struct ByteLine {
  static constexpr int kWords = (count + 3) / 4;
  uint32_t word[kWords][kPiece];

  // at(i): the word of position i.
  template <typename F>
  DAQ_DEVICE explicit ByteLine(const F& at) {
    turn<0>(at);
  }
  // Positions i..i + 3 of channel c; those beyond the line are of no meaning. For constant i.
  DAQ_DEVICE uint32_t window(int i, int c) const {
    const uint32_t low = word[i / 4][c];
    if (i % 4 == 0) return low;
    const uint32_t high = i / 4 + 1 < kWords ? word[i / 4 + 1][c] : 0u;
    return permute_bytes(low, high, 0x3210u + 0x1111u * (i % 4));
  }

 private:
  template <int w, typename F>
  DAQ_DEVICE void turn(const F& at) {
    constexpr int kLeft = count - 4 * w < 4 ? count - 4 * w : 4;
    uint32_t position[kLeft];
#pragma unroll
    for (int i = 0; i < kLeft; ++i) position[i] = at(4 * w + i);
    transpose_bytes<kLeft>(position, word[w]);
    if constexpr (w + 1 < kWords) turn<w + 1>(at);
  }
};

}  // namespace daq_mm::cuda
