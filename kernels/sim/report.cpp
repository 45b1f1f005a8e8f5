// Texts of reports.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <map>

#include "engine.hpp"

namespace sim {

std::string hex(u64 value) {
  char text[20];
  snprintf(text, sizeof text, "0x%08llx", static_cast<unsigned long long>(value));
  return text;
}

// The path from `kernels/` on, and the line unless it is 0.
std::string place(const char* file, int line) {
  if (file == nullptr) return "its start";
  const char* tail = file;
  for (const char* p = strstr(file, "kernels/"); p != nullptr; p = strstr(p + 1, "kernels/")) tail = p + 8;
  return line == 0 ? std::string(tail) : std::string(tail) + ":" + std::to_string(line);
}

std::string block_index(const BlockView& b) {
  return "(" + std::to_string(b.index.x) + ", " + std::to_string(b.index.y) + ", " + std::to_string(b.index.z) + ")";
}

const char* op_name(Op op) {
  switch (op) {
    case Op::none: return "nothing";
    case Op::barrier: return "__syncthreads";
    case Op::warp_barrier: return "__syncwarp";
    case Op::shuffle: return "a shuffle";
    case Op::ballot: return "a vote";
    case Op::reduce: return "a warp reduction";
    case Op::load_matrices: return "ldmatrix";
    case Op::multiply: return "mma";
  }
  return "";
}

namespace {

// "0-31, 40" for sorted numbers.
std::string ranges(const std::vector<u32>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t j = i;
    while (j + 1 < numbers.size() && numbers[j + 1] == numbers[j] + 1) ++j;
    if (!text.empty()) text += ", ";
    text += std::to_string(numbers[i]);
    if (j > i) text += "-" + std::to_string(numbers[j]);
    i = j + 1;
  }
  return text;
}

}  // namespace

std::string Engine::describe(const Thread& t) const {
  return "block " + block_index(*t.block) + " thread " + std::to_string(t.number);
}

// The operation in which a thread waits, and for which threads.
std::string Engine::waiting(const Thread& t) const {
  const Warp& w = warps_[t.warp];
  std::string text = std::string(op_name(t.op)) + " at " + place(t.file, t.line);
  if (t.op == Op::barrier) {
    return text + " (" + std::to_string(w.block->arrived) + " of " + std::to_string(w.block->live) + " arrived)";
  }
  const u32 absent = t.mask & w.live & ~w.parked;
  std::vector<u32> missing;
  for (u32 lane = 0; lane < 32; ++lane) {
    if (absent >> lane & 1) missing.push_back(t.number / 32 * 32 + lane);
  }
  text += " with mask " + hex(t.mask);
  return missing.empty() ? text : text + " (for threads " + ranges(missing) + ")";
}

std::string Engine::deadlock() const {
  std::string text = "deadlock:";
  for (const Block& b : blocks_) {
    if (b.live == 0) continue;
    std::map<std::string, std::vector<u32>> groups;
    for (u32 i = 0; i < job_.threads; ++i) {
      const Thread& t = threads_[b.first_warp * 32 + i];
      groups[t.state == Thread::State::exited ? "exited" : "wait in " + waiting(t)].push_back(i);
    }
    text += "\n  block " + block_index(b);
    for (const auto& [reason, numbers] : groups) text += "\n    threads " + ranges(numbers) + ": " + reason;
  }
  return text;
}

// Describes the place of an address.
std::string Engine::where(const void* address) const {
  for (const Block& b : blocks_) {
    if (!b.arena.owns(address)) continue;
    return "byte " + std::to_string(static_cast<const u8*>(address) - b.arena.begin()) + " of " +
           std::to_string(job_.shared_bytes) + " bytes of shared memory";
  }
  return memory_->describe(address);
}

std::string Engine::fault_report() {
  const Thread& t = *running_;
  std::string text = describe(t) + ": ";
  if (fault_signal_ == SIGFPE) {
    text += "integer division by zero or overflow";
  } else if (stacks_.is_guard(fault_address_)) {
    text += "stack overflow: more than " + std::to_string(Stacks::BYTES) + " bytes of local variables";
  } else {
    text += fault_access_ == 2 ? "write to " : fault_access_ == 1 ? "read of " : "access to ";
    text += hex(reinterpret_cast<u64>(fault_address_)) + ", " + where(fault_address_);
  }
  return text + "; the thread had come from " + place(t.file, t.line);
}

void misaligned(const void* address, unsigned long bytes) {
  Engine& e = *engine;
  const Thread& t = e.self();
  e.fail("one access of " + std::to_string(bytes) + " bytes at " + hex(reinterpret_cast<u64>(address)) + ", " +
         e.where(address) + ": not at a multiple of its size; the thread had come from " + place(t.file, t.line));
}

}  // namespace sim
