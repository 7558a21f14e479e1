// Where the contraction of forward and grad-input is: which tap, which channel. Loops step it by
// additions, since a division costs a thread more than the rest of a stage.
#pragma once

#include "cuda/conv_sizes.h"
#include "cuda/primitives/primitives.h"

namespace daq_mm::cuda::rows {

// Which source chunk meets a k: the tap by axis, the channel within the group.
struct Place {
  int tap[3];
  int channel;

  static DAQ_DEVICE Place of(int k, int depth, const ConvMap& map) {
    if (map.taps() == 0) return {{0, 0, 0}, 0};  // nothing is met
    const int tap = k / depth;
    return {{tap / map.axis[2].taps / map.axis[1].taps, tap / map.axis[2].taps % map.axis[1].taps,
             tap % map.axis[2].taps},
            k % depth};
  }

  DAQ_DEVICE void advance(int count, int depth, const ConvMap& map) {
    channel += count;
    while (channel >= depth) {
      channel -= depth;
      if (++tap[2] == map.axis[2].taps) {
        tap[2] = 0;
        if (++tap[1] == map.axis[1].taps) {
          tap[1] = 0;
          ++tap[0];
        }
      }
    }
  }
};

}  // namespace daq_mm::cuda::rows
