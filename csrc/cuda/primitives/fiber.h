// A stack that can be left and entered again: one thread of an emulated block.
#pragma once

#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace daq_mm::cuda::emulator {

class Fiber {
 public:
  static constexpr std::size_t kStackBytes = 128 * 1024;

  Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Sets the fiber to call entry(argument) when it is first resumed. The entry must not return: it
  // leaves for the last time by suspend(). What an unfinished earlier call had on the stack is
  // forgotten without destructors.
  void start(void (*entry)(void*), void* argument);

  // Runs the fiber until it suspends; called from outside of it.
  void resume();

  // Goes back to the caller of resume(); called on the fiber.
  void suspend();

 private:
  std::unique_ptr<std::byte[]> stack_;
#if defined(__x86_64__)
  void* own_ = nullptr;     // the saved stack pointers
  void* caller_ = nullptr;
#else
  ucontext_t own_;
  ucontext_t caller_;
#endif
};

}  // namespace daq_mm::cuda::emulator
