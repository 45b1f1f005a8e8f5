// Reports every load and store of the kernels that include it to the simulator.
//
// With -fsanitize=thread, g++ inserts a call before every memory access. These are the called functions, in place of
// the sanitizer's library, which is not linked. Kernels are compiled in this way only to count their traffic.
// Included by cuda_builtins.hpp.
#pragma once

#include "interface.hpp"

#define SIM_HOOK extern "C" __attribute__((weak, no_sanitize("thread"))) void

#define SIM_HOOKS(bytes)                                                                     \
  SIM_HOOK __tsan_read##bytes(void* p) { ::sim::touch(p, bytes, false); }                    \
  SIM_HOOK __tsan_write##bytes(void* p) { ::sim::touch(p, bytes, true); }                    \
  SIM_HOOK __tsan_unaligned_read##bytes(void* p) { ::sim::touch(p, bytes, false); }          \
  SIM_HOOK __tsan_unaligned_write##bytes(void* p) { ::sim::touch(p, bytes, true); }
SIM_HOOKS(1)
SIM_HOOKS(2)
SIM_HOOKS(4)
SIM_HOOKS(8)
SIM_HOOKS(16)
#undef SIM_HOOKS

SIM_HOOK __tsan_read_range(void* p, unsigned long bytes) { ::sim::touch(p, bytes, false); }
SIM_HOOK __tsan_write_range(void* p, unsigned long bytes) { ::sim::touch(p, bytes, true); }
SIM_HOOK __tsan_init() {}
SIM_HOOK __tsan_func_entry(void*) {}
SIM_HOOK __tsan_func_exit() {}

#undef SIM_HOOK
