// Fibers: a stack each, and a switch from one to another.
#pragma once

#include <cstddef>
#include <vector>

// SIM_PORTABLE takes what works on every architecture.
#if defined(__x86_64__) && !defined(SIM_PORTABLE)
#define SIM_ASSEMBLY_SWITCH
#else
#include <ucontext.h>
#endif

namespace sim {

// Where a fiber goes on: a stack pointer under which its registers lie, or a ucontext where there is no assembly switch.
struct Context {
#ifdef SIM_ASSEMBLY_SWITCH
  void* sp = nullptr;
#else
  ucontext_t state;
#endif
};

// Leaves `from`, goes on at `to`. Returns when something switches to `from`.
void switch_context(Context* from, Context* to);

// Stacks with a guard page below each, made once and used again.
class Stacks {
 public:
  static constexpr size_t BYTES = 64 * 1024;

  ~Stacks();
  // A stack on which `context` starts `entry`; `entry` never returns. nullptr where there is no memory.
  void* start(Context* context, void (*entry)());
  void give_back(void* stack) { free_.push_back(stack); }
  // All stacks are free again, whatever runs on them.
  void reset() { free_ = all_; }
  // Whether `address` is in a guard page.
  bool is_guard(const void* address) const;

 private:
  bool grow();

  std::vector<void*> slabs_, all_, free_;
};

}  // namespace sim
