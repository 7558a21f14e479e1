// What host code asks of the device to choose launches.
#pragma once

namespace daq_mm::cuda {

// Streaming multiprocessors of the current device; in the emulator what
// emulator::set_multiprocessors() said.
int multiprocessors();

// Whether the current device has compute capability 9.0: warpgroup products and the copy engine; in
// the emulator what emulator::set_warpgroups() said.
bool has_warpgroups();

}  // namespace daq_mm::cuda
