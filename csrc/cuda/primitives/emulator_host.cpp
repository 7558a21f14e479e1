// The emulator's stopwatch and log of launches: see emulator_host.h.

#include "cuda/primitives/emulator_host.h"

#include "cuda/primitives/stopwatch.h"

namespace daq_mm::cuda::emulator {
namespace {

std::vector<double> clock_seconds;
int64_t readings = 0;
bool capturing = false;
bool logging = false;
std::vector<Launch> launches;

}  // namespace

void set_clock(std::vector<double> seconds) {
  clock_seconds = std::move(seconds);
  readings = 0;
}
int64_t clock_readings() { return readings; }

void set_capturing(bool value) { capturing = value; }

void log_launches(bool value) {
  if (value) launches.clear();
  logging = value;
}
const std::vector<Launch>& logged_launches() { return launches; }
void log_launch(const Launch& launch) {
  if (logging) launches.push_back(launch);
}

}  // namespace daq_mm::cuda::emulator

namespace daq_mm::cuda {

double device_seconds(Stream /*stream*/, double /*head_start*/,
                      const std::function<void()>& work) {
  using namespace emulator;
  work();
  const size_t reading = static_cast<size_t>(readings++);
  return clock_seconds.empty() ? 1.0 : clock_seconds[reading % clock_seconds.size()];
}

bool is_capturing(Stream /*stream*/) { return emulator::capturing; }

}  // namespace daq_mm::cuda
