// Fibers: their stacks, and the switch from one to another.
#pragma once

#include <cstddef>
#include <vector>

// SIM_PORTABLE selects the code that works on every architecture.
#if defined(__x86_64__) && !defined(SIM_PORTABLE)
#define SIM_ASSEMBLY_SWITCH
#else
#include <ucontext.h>
#endif

namespace sim {

// Where a fiber continues: a stack pointer to its saved registers, or a ucontext without the assembly switch.
struct Context {
#ifdef SIM_ASSEMBLY_SWITCH
  void* sp = nullptr;
#else
  ucontext_t state;
#endif
};

// Saves `from` and continues at `to`. Returns when something switches to `from`.
void switch_context(Context* from, Context* to);

// Stacks with a guard page below each, allocated once and reused.
class Stacks {
 public:
  static constexpr size_t BYTES = 64 * 1024;

  ~Stacks();
  // Takes a stack on which `context` starts `entry`, which never returns. nullptr if out of memory.
  void* start(Context* context, void (*entry)());
  void give_back(void* stack) { free_.push_back(stack); }
  // Frees all stacks, whatever runs on them.
  void reset() { free_ = all_; }
  // True if `address` is in a guard page.
  bool is_guard(const void* address) const;

 private:
  bool grow();

  std::vector<void*> slabs_, all_, free_;
};

}  // namespace sim
