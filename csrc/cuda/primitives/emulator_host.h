// What tests tell the emulator about time and captures, and what it tells them about launches.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/primitives/types.h"

namespace daq_mm::cuda::emulator {

// What device_seconds() returns, one after another and then from the first again; empty: always 1.
// Sets clock_readings() to 0.
void set_clock(std::vector<double> seconds);
int64_t clock_readings();

// What is_capturing() returns.
void set_capturing(bool value);

// Begins or ends a log of launches; beginning one forgets the last.
struct Launch {
  Grid grid;
  int threads;
  int64_t shared_bytes;
};
void log_launches(bool value);
const std::vector<Launch>& logged_launches();

// Called by run().
void log_launch(const Launch& launch);

}  // namespace daq_mm::cuda::emulator
