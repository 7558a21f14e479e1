// Time on the device, and whether launches are only being recorded.
#pragma once

#include <functional>

#include "cuda/primitives/types.h"

namespace daq_mm::cuda {

// Seconds that what work() launches on the stream takes there; waits for the end of it. The device
// idles for `head_start` seconds first, in which the host can queue its launches: what it has not
// queued by then, counts with the host's time. In the emulator what emulator::set_clock() said.
double device_seconds(Stream stream, double head_start, const std::function<void()>& work);

// Whether the stream is being captured into a CUDA graph, so that launches do not run yet and
// nothing may wait for them; in the emulator what emulator::set_capturing() said.
bool is_capturing(Stream stream);

}  // namespace daq_mm::cuda
