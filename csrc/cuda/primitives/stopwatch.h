// Time on the device, and whether launches are only being recorded.
#pragma once

#include <functional>

#include "cuda/primitives/types.h"

namespace daq_mm::cuda {

// Seconds that what work() launches on the stream takes there; waits for the end of it. In the
// emulator what emulator::set_clock() said.
double device_seconds(Stream stream, const std::function<void()>& work);

// Whether the stream is being captured into a CUDA graph, so that launches do not run yet and
// nothing may wait for them; in the emulator what emulator::set_capturing() said.
bool is_capturing(Stream stream);

}  // namespace daq_mm::cuda
