#include "fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

namespace sim {

namespace {
#if defined(__x86_64__)
constexpr size_t GUARD = 4096;
#else
constexpr size_t GUARD = 65536;  // the largest page of other architectures
#endif
constexpr size_t STRIDE = Stacks::BYTES + GUARD;
constexpr size_t SLAB = 64;
// Adjacent stacks start a few cache lines apart; otherwise their hot ends would fall into the same cache sets.
constexpr size_t COLOURS = 28, COLOUR = 128;
}  // namespace

#ifdef SIM_ASSEMBLY_SWITCH

// Saves what is callee-saved in the System V ABI: rbx, rbp, r12-r15, the SSE and x87 control words.
asm(R"(
  .text
  .p2align 4
  .type sim_switch, @function
sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  subq $8, %rsp
  stmxcsr (%rsp)
  fnstcw 4(%rsp)
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  ldmxcsr (%rsp)
  fldcw 4(%rsp)
  addq $8, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size sim_switch, . - sim_switch
)");
extern "C" void sim_switch(void** from_sp, void* to_sp);

void switch_context(Context* from, Context* to) { sim_switch(&from->sp, to->sp); }

static void prepare(Context* context, char* low, size_t bytes, void (*entry)()) {
  auto top = reinterpret_cast<uintptr_t>(low + bytes) & ~uintptr_t(15);
  auto* words = reinterpret_cast<uint64_t*>(top);
  *--words = 0;  // a return address that ends backtraces; entry sees rsp = 16 n + 8 as after a call
  *--words = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--words = 0;
  uint32_t mxcsr;
  uint16_t control;
  asm volatile("stmxcsr %0" : "=m"(mxcsr));
  asm volatile("fnstcw %0" : "=m"(control));
  *--words = mxcsr | uint64_t(control) << 32;
  context->sp = words;
}

#else

void switch_context(Context* from, Context* to) { swapcontext(&from->state, &to->state); }

static void prepare(Context* context, char* low, size_t bytes, void (*entry)()) {
  getcontext(&context->state);
  context->state.uc_stack.ss_sp = low;
  context->state.uc_stack.ss_size = bytes;
  context->state.uc_link = nullptr;
  makecontext(&context->state, entry, 0);
}

#endif

Stacks::~Stacks() {
  for (void* slab : slabs_) munmap(slab, SLAB * STRIDE);
}

bool Stacks::grow() {
  void* slab = mmap(nullptr, SLAB * STRIDE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (slab == MAP_FAILED) return false;
  // Runs on a fiber, which an exception cannot leave.
  try {
    slabs_.reserve(slabs_.size() + 1);
    all_.reserve(all_.size() + SLAB);
    free_.reserve(all_.size() + SLAB);
  } catch (const std::bad_alloc&) {
    munmap(slab, SLAB * STRIDE);
    return false;
  }
  slabs_.push_back(slab);
  for (size_t i = SLAB; i-- > 0;) {
    char* stack = static_cast<char*>(slab) + i * STRIDE + GUARD;
    if (mprotect(stack, BYTES, PROT_READ | PROT_WRITE) != 0) return false;
    all_.push_back(stack);
    free_.push_back(stack);
  }
  return true;
}

void* Stacks::start(Context* context, void (*entry)()) {
  if (free_.empty() && !grow()) return nullptr;
  void* stack = free_.back();
  free_.pop_back();
  const size_t number = (reinterpret_cast<uintptr_t>(stack) / GUARD) / (STRIDE / GUARD);
  prepare(context, static_cast<char*>(stack), BYTES - number % COLOURS * COLOUR, entry);
  return stack;
}

bool Stacks::is_guard(const void* address) const {
  for (void* slab : slabs_) {
    const auto offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(slab);
    if (offset < SLAB * STRIDE) return offset % STRIDE < GUARD;
  }
  return false;
}

}  // namespace sim
