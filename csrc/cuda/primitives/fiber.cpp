// Switching stacks: by hand on x86-64 (a few nanoseconds), through ucontext elsewhere.

#include "cuda/primitives/fiber.h"

#include <cstdint>

#if defined(__x86_64__)
extern "C" void daq_mm_switch_stacks(void** save, void* load);
extern "C" void daq_mm_fiber_entry();

// Saves the registers that a call preserves, exchanges stacks, restores them. A new fiber's stack
// is laid out so that the first switch returns into daq_mm_fiber_entry, which calls r12(r13).
asm(R"(
  .pushsection .text
  .hidden daq_mm_switch_stacks
  .globl daq_mm_switch_stacks
  .type daq_mm_switch_stacks, @function
daq_mm_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size daq_mm_switch_stacks, .-daq_mm_switch_stacks

  .hidden daq_mm_fiber_entry
  .globl daq_mm_fiber_entry
  .type daq_mm_fiber_entry, @function
daq_mm_fiber_entry:
  .cfi_startproc
  .cfi_undefined rip
  movq %r13, %rdi
  call *%r12
  ud2
  .cfi_endproc
  .size daq_mm_fiber_entry, .-daq_mm_fiber_entry
  .popsection
)");
#endif

namespace daq_mm::cuda::emulator {

Fiber::Fiber() : stack_(new std::byte[kStackBytes]) {}

#if defined(__x86_64__)

void Fiber::start(void (*entry)(void*), void* argument) {
  const auto end = reinterpret_cast<std::uintptr_t>(stack_.get() + kStackBytes);
  auto* top = reinterpret_cast<void**>(end & ~std::uintptr_t{15});
  *--top = nullptr;  // keeps the entry's stack pointer a multiple of 16 before its call
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&daq_mm_fiber_entry);
  *--top = nullptr;                             // rbp
  *--top = nullptr;                             // rbx
  *--top = reinterpret_cast<void*>(entry);      // r12
  *--top = argument;                            // r13
  *--top = nullptr;                             // r14
  *--top = nullptr;                             // r15
  own_ = top;
}

void Fiber::resume() { daq_mm_switch_stacks(&caller_, own_); }
void Fiber::suspend() { daq_mm_switch_stacks(&own_, caller_); }

#else

namespace {

// makecontext passes ints alone: a pointer comes in two halves.
template <typename T>
T joined(unsigned high, unsigned low) {
  return reinterpret_cast<T>((static_cast<std::uintptr_t>(high) << 32) | low);
}

void enter(unsigned a, unsigned b, unsigned c, unsigned d) {
  joined<void (*)(void*)>(a, b)(joined<void*>(c, d));
}

unsigned high_half(const void* p) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(p)) >> 32);
}

unsigned low_half(const void* p) {
  return static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(p));
}

}  // namespace

void Fiber::start(void (*entry)(void*), void* argument) {
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack_.get();
  own_.uc_stack.ss_size = kStackBytes;
  own_.uc_link = nullptr;
  const void* call = reinterpret_cast<const void*>(entry);
  makecontext(&own_, reinterpret_cast<void (*)()>(&enter), 4, high_half(call), low_half(call),
              high_half(argument), low_half(argument));
}

void Fiber::resume() { swapcontext(&caller_, &own_); }
void Fiber::suspend() { swapcontext(&own_, &caller_); }

#endif

}  // namespace daq_mm::cuda::emulator
