// Turns memory faults inside kernels into reports.
#pragma once

#include <csignal>
#include <cstddef>

namespace sim {

class Engine;

// While it exists, a fault on this operating-system thread leaves the kernel and returns to the engine.
struct FaultHandler {
  explicit FaultHandler(Engine& engine);
  ~FaultHandler();
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;

  static void on_signal(int signal, siginfo_t* info, void* context);

  stack_t previous;
};

}  // namespace sim
