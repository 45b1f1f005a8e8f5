// The scheduler: runs one launch at a time on the fibers of one operating-system thread.
//
// CUDA threads are fibers; they yield only in barriers, in warp collectives and before atomic operations. Ready threads
// are bits: a word of warps, and a word of lanes in each warp.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <string>
#include <vector>

#include "fiber.hpp"
#include "interface.hpp"
#include "memory.hpp"

namespace sim {

using u8 = uint8_t;
using u32 = uint32_t;
using u64 = uint64_t;

// The order in which ready threads run.
enum class Schedule : u32 {
  in_order,  // one block after the other, the lowest-numbered ready thread first
  reverse,   // in_order backwards
  random,    // several blocks, any ready thread
  priority,  // several blocks, a ready thread of the highest-priority warp; priorities change at random moments
};

// When an asynchronous copy happens.
enum class Copies : u32 { early, late, random };

// How a tensor core adds; see tensor_core.hpp.
enum class Arithmetic : u32 { sm80, sm90, exact };

// Mirrored in src/device/sim/ffi.rs.
struct Options {
  Schedule schedule;
  u32 depth;
  Copies copies;
  Arithmetic arithmetic;
  u32 alignment;
  u32 shared_limit;
  u32 approximate;
  u32 traffic;  // not 0: count the memory that launches touch
  u64 seed;
};

// xorshift64*: short, fast and good enough to choose threads.
struct Random {
  u64 state = 1;
  void seed(u64 a, u64 b);
  u64 next() {
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull;
  }
  u32 below(u32 n) { return static_cast<u32>(((next() >> 32) * n) >> 32); }
};

enum class Op : u8 { none, barrier, warp_barrier, shuffle, ballot, reduce, load_matrices, multiply };

struct Copy {
  u8* dst;
  const u8* src;
  u32 size, bytes, group;
};

struct Block;

struct Thread : ThreadView {
  enum class State : u8 { fresh, ready, waiting, exited };
  Context context;
  void* stack = nullptr;
  State state = State::exited;
  Op op = Op::none;       // the operation in which it waits, if state is waiting
  u32 mask = 0;           // the mask of the operation
  void* arguments = nullptr;
  const char* file = nullptr;  // where it last entered the scheduler
  int line = 0;
  u32 number = 0;         // in its block
  u32 warp = 0;           // in the engine
  u32 group = 0;          // number of committed cp.async groups
  std::vector<Copy> copies;
};

struct Warp {
  u32 ready = 0;   // lanes that can run
  u32 live = 0;    // lanes that have not exited
  u32 parked = 0;  // lanes that wait in a warp collective
  u32 priority = 0;
  Block* block = nullptr;
  Thread* lanes = nullptr;
  Thread* first = nullptr;  // the first that parked
  bool uniform = false;     // true if all parked lanes wait in one operation, with one mask, at one line
};

struct Block : BlockView {
  u32 first_warp = 0, warps = 0;
  u32 live = 0, arrived = 0;
  const Thread* first_arrived = nullptr;
  Vote vote = Vote::none;
  int counted = 0, result = 0;
  SharedArena arena;
};

// A launch.
struct Job {
  const char* name;
  Entry entry;
  const void* params;
  const float* gate;
  u32 threads;
  u32 grid[3];
  u32 shared_bytes;
};

class Engine {
 public:
  static constexpr u32 WARPS = 64;
  static constexpr size_t SIGNAL_STACK = 64 * 1024;

  Engine();
  // Runs `job`. Returns an empty string, or the problem and its place.
  std::string run(const Job& job, const Options& options, u64 launch, const Memory& memory);

  // Called on fibers.
  int barrier(Vote vote, int predicate, const char* file, int line);
  void collective(Op op, u32 mask, void* arguments, const char* file, int line);
  void interleave(const char* file, int line);
  void give_way();
  std::string where(const void* address) const;
  [[noreturn]] void fail(const std::string& problem);
  [[noreturn]] void stop(const std::string& report);
  Thread& self() { return *running_; }
  Random& random() { return random_; }
  const Options& options() const { return options_; }
  bool deterministic() const { return options_.schedule <= Schedule::reverse; }
  u32 shared_bytes() const { return job_.shared_bytes; }
  void* signal_stack() { return signal_stack_.data(); }

 private:
  friend void fiber_main();
  friend struct FaultHandler;

  void start_blocks();
  void start_block(Block& block);
  void end_block(Block& block);
  void exit_thread();
  void release(Block& block);
  bool complete(Warp& warp, u32 mask);
  Thread* pick();
  Thread* pick_by_priority();
  Thread* pick_cyclic();
  void resume(Thread* next, Context* from);
  void wake(Thread& thread);
  void park(Thread& thread);
  void check_arrival(Thread& thread);
  void check_against(const Thread& thread, const Warp& warp);
  std::string describe(const Thread& thread) const;
  std::string waiting(const Thread& thread) const;
  std::string deadlock() const;
  std::string fault_report();

  Options options_{};
  Job job_{};
  Random random_;
  const Memory* memory_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Block> blocks_;
  Warp warps_[WARPS];
  u64 ready_warps_ = 0;
  u32 last_warp_ = 0;
  u32 lowest_priority_ = 0;
  u64 next_block_ = 0, total_blocks_ = 0;
  u32 blocks_alive_ = 0;
  u64 idle_ = 0;
  std::vector<u32> order_;
  Stacks stacks_;
  std::vector<u8> signal_stack_ = std::vector<u8>(SIGNAL_STACK);
  Context main_, nowhere_;
  Thread* running_ = nullptr;
  std::string error_;
  sigjmp_buf fault_jump_;
  volatile int fault_signal_ = 0;
  const void* volatile fault_address_ = nullptr;
  volatile int fault_access_ = 0;  // 0 unknown, 1 read, 2 write
};

// The engine of this operating-system thread while it runs a launch.
extern __thread Engine* engine;

// Performs a warp collective whose lanes have all arrived.
void execute(Engine& engine, Warp& warp, u32 lanes);

// Text for reports.
std::string place(const char* file, int line);
std::string hex(u64 value);
std::string block_index(const BlockView& block);
const char* op_name(Op op);

}  // namespace sim
