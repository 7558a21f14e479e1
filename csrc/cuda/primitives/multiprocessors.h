// The number of streaming multiprocessors, for host code that chooses launches.
#pragma once

namespace daq_mm::cuda {

// Of the current device; in the emulator what emulator::set_multiprocessors() said.
int multiprocessors();

}  // namespace daq_mm::cuda
