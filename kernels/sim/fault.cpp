#include "fault.hpp"

#include <mutex>

#include "engine.hpp"

namespace sim {

namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction previous_actions[64];

void install() {
  struct sigaction action = {};
  action.sa_sigaction = FaultHandler::on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  for (int signal : SIGNALS) sigaction(signal, &action, &previous_actions[signal]);
}

// Calls the previously installed handler.
void chain(int signal, siginfo_t* info, void* context) {
  const struct sigaction& previous = previous_actions[signal];
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
    sigaction(signal, &previous, nullptr);  // the instruction faults again
  } else {
    previous.sa_handler(signal);
  }
}

int access_kind(const void* context) {
#if defined(__x86_64__) && defined(__linux__)
  return static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2 ? 2 : 1;
#else
  (void)context;
  return 0;
#endif
}

}  // namespace

FaultHandler::FaultHandler(Engine& e) {
  static std::once_flag once;
  std::call_once(once, install);
  stack_t own = {};
  own.ss_sp = e.signal_stack();
  own.ss_size = Engine::SIGNAL_STACK;
  sigaltstack(&own, &previous);
}

FaultHandler::~FaultHandler() { sigaltstack(&previous, nullptr); }

void FaultHandler::on_signal(int signal, siginfo_t* info, void* context) {
  Engine* e = engine;
  if (e == nullptr || e->running_ == nullptr || e->fault_signal_ != 0) {
    chain(signal, info, context);
    return;
  }
  e->fault_signal_ = signal;
  e->fault_address_ = info->si_addr;
  e->fault_access_ = signal == SIGSEGV ? access_kind(context) : 0;
  siglongjmp(e->fault_jump_, 1);
}

}  // namespace sim
