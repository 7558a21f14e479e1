// What host code asks of the device to choose launches.
#pragma once

#include <cstdint>

namespace daq_mm::cuda {

// Streaming multiprocessors of the current device; in the emulator what
// emulator::set_multiprocessors() said.
struct Multiprocessors {
  int count;
  int64_t shared_bytes;  // of each, for its blocks together
};
Multiprocessors multiprocessors();

// Whether the current device has compute capability 9.0: warpgroup products and the copy engine; in
// the emulator what emulator::set_warpgroups() said.
bool has_warpgroups();

}  // namespace daq_mm::cuda
