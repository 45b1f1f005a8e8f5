// Launches, blocks and threads: the choice of the next thread; waiting and exit.
#include "engine.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "fault.hpp"

namespace sim {

__thread ThreadView* current = nullptr;
__thread Engine* engine = nullptr;

namespace {

// Warps in flight in the random schedules, in at most eight blocks; each thread has a stack.
constexpr u32 WARPS_IN_FLIGHT = 64;
// Yields without other progress after which a launch is given up.
constexpr u64 PATIENCE = 5'000'000;
// depth - 1 in this many steps change a priority, on average.
constexpr u32 PRIORITY_PERIOD = 200;

u32 lowest(u32 bits) { return static_cast<u32>(__builtin_ctz(bits)); }
u32 lowest(u64 bits) { return static_cast<u32>(__builtin_ctzll(bits)); }

std::string arrival(const Thread& t) {
  return std::string(op_name(t.op)) + " with mask " + hex(t.mask) + " at " + place(t.file, t.line);
}

bool same_site(const Thread& t, const char* file, int line) {
  return t.line == line && (t.file == file || strcmp(t.file, file) == 0);
}

template <typename T>
u32 nth(T bits, u32 n) {
  for (; n > 0; --n) bits &= bits - 1;
  return lowest(bits);
}

}  // namespace

void Random::seed(u64 a, u64 b) {
  u64 z = a * 0x9e3779b97f4a7c15ull + b + 0x632be59bd9b4e019ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  state = (z ^ (z >> 31)) | 1;
}

Engine::Engine() : threads_(WARPS * 32) {
  for (u32 w = 0; w < WARPS; ++w) {
    warps_[w].lanes = &threads_[w * 32];
    for (u32 l = 0; l < 32; ++l) threads_[w * 32 + l].warp = w;
  }
}

// ------------------------------------------------------------------------------------------------ a launch

void fiber_main() {
  Engine& e = *engine;
  for (;;) {
    e.job_.entry(e.job_.params, e.job_.gate);
    e.exit_thread();
  }
}

std::string Engine::run(const Job& job, const Options& options, u64 launch, const Memory& memory) {
  job_ = job;
  options_ = options;
  memory_ = &memory;
  random_.seed(options.seed, launch);
  error_.clear();
  stacks_.reset();
  idle_ = 0;
  last_warp_ = 0;
  lowest_priority_ = 0;
  fault_signal_ = 0;
  engine = this;
  const FaultHandler handler(*this);
  if (sigsetjmp(fault_jump_, 1) == 0) {
    start_blocks();
    if (error_.empty()) resume(pick(), &main_);
  } else {
    error_ = fault_report();
  }
  engine = nullptr;
  current = nullptr;
  running_ = nullptr;
  return error_;
}

void Engine::start_blocks() {
  const u32 warps = (job_.threads + 31) / 32;
  const u32 flight = deterministic() ? 1 : std::clamp(WARPS_IN_FLIGHT / warps, 1u, 8u);
  total_blocks_ = u64(job_.grid[0]) * job_.grid[1] * job_.grid[2];
  next_block_ = 0;
  order_.clear();
  if (!deterministic()) {
    order_.resize(total_blocks_);
    std::iota(order_.begin(), order_.end(), 0u);
    for (u64 i = total_blocks_; i > 1; --i) std::swap(order_[i - 1], order_[random_.below(static_cast<u32>(i))]);
  }
  if (blocks_.size() < flight) blocks_.resize(flight);
  for (Warp& w : warps_) w.ready = w.live = w.parked = 0;
  for (Block& b : blocks_) b.live = 0;
  ready_warps_ = 0;
  blocks_alive_ = 0;
  for (u32 i = 0; i < flight && next_block_ < total_blocks_; ++i) {
    if (blocks_[i].arena.begin() == nullptr && !blocks_[i].arena.reserve(options_.shared_limit)) {
      error_ = "out of memory: the shared memory of a simulated block";
      return;
    }
    blocks_[i].first_warp = i * warps;
    blocks_[i].warps = warps;
    start_block(blocks_[i]);
  }
}

void Engine::start_block(Block& b) {
  u64 n = next_block_++;
  if (options_.schedule == Schedule::reverse) n = total_blocks_ - 1 - n;
  if (!order_.empty()) n = order_[n];
  const u32 gx = job_.grid[0], gy = job_.grid[1];
  b.index = {static_cast<u32>(n % gx), static_cast<u32>(n / gx % gy), static_cast<u32>(n / gx / gy)};
  b.block_dim = {job_.threads, 1, 1};
  b.grid_dim = {gx, gy, job_.grid[2]};
  b.shared = b.arena.reset(job_.shared_bytes, deterministic() ? 0 : random_.below(SharedArena::MOST_SHIFT + 1));
  b.live = job_.threads;
  b.arrived = 0;
  b.counted = 0;
  ++blocks_alive_;
  for (u32 i = 0; i < job_.threads; ++i) {
    Thread& t = threads_[b.first_warp * 32 + i];
    t.index = {i, 0, 0};
    t.block = &b;
    t.number = i;
    t.state = Thread::State::fresh;
    t.stack = nullptr;
    t.op = Op::none;
    t.file = nullptr;
    t.group = 0;
    t.copies.clear();
  }
  for (u32 i = 0; i < b.warps; ++i) {
    Warp& w = warps_[b.first_warp + i];
    const u32 lanes = std::min(32u, job_.threads - i * 32);
    w.live = w.ready = lanes == 32 ? ~0u : (1u << lanes) - 1;
    w.parked = 0;
    w.block = &b;
    if (!deterministic()) w.priority = static_cast<u32>(random_.next() >> 33) | 0x40000000u;
    ready_warps_ |= u64(1) << (b.first_warp + i);
  }
}

void Engine::end_block(Block& b) {
  const std::string stray = b.arena.check();
  if (!stray.empty()) stop("block " + block_index(b) + ": a thread wrote to " + stray);
  --blocks_alive_;
  if (next_block_ < total_blocks_) start_block(b);
}

// ------------------------------------------------------------------------------------------------ threads

void Engine::wake(Thread& t) {
  t.state = Thread::State::ready;
  t.op = Op::none;
  warps_[t.warp].ready |= 1u << (t.number % 32);
  ready_warps_ |= u64(1) << t.warp;
}

void Engine::park(Thread& t) {
  t.state = Thread::State::waiting;
  Warp& w = warps_[t.warp];
  w.ready &= ~(1u << (t.number % 32));
  if (w.ready == 0) ready_warps_ &= ~(u64(1) << t.warp);
}

// Switches from `from`, which is ready or will not come back, to `next`. nullptr: nothing can run.
void Engine::resume(Thread* next, Context* from) {
  if (next == nullptr) {
    if (blocks_alive_ == 0) {
      switch_context(from, &main_);
      return;
    }
    stop(deadlock());
  }
  if (next == running_) return;
  running_ = next;
  current = next;
  if (next->state == Thread::State::fresh) {
    next->stack = stacks_.start(&next->context, fiber_main);
    if (next->stack == nullptr) {
      error_ = "out of memory: the stacks of simulated threads";
      if (from != &main_) switch_context(from, &main_);
      return;
    }
    next->state = Thread::State::ready;
  }
  switch_context(from, &next->context);
}

// Runs the schedule's picks until it picks the running thread, which is ready or parked, again.
void Engine::give_way() {
  Thread* self = running_;
  resume(pick(), &self->context);
}

// Ends the running thread. If the next one has not started, it takes over the stack and returns from here.
void Engine::exit_thread() {
  Thread& t = *running_;
  void* const stack = t.stack;
  park(t);
  t.state = Thread::State::exited;
  Warp& w = warps_[t.warp];
  Block& b = *w.block;
  w.live &= ~(1u << (t.number % 32));
  --b.live;
  idle_ = 0;
  if (b.live == 0) {
    end_block(b);
  } else {
    if (b.arrived == b.live) release(b);
    for (u32 left = w.parked; left != 0; left &= left - 1) {
      const u32 lane = lowest(left);
      if ((w.parked >> lane & 1) && (w.lanes[lane].mask >> (t.number % 32) & 1)) complete(w, w.lanes[lane].mask);
    }
  }
  Thread* next = pick();
  if (next != nullptr && next->state == Thread::State::fresh) {
    next->stack = stack;
    next->state = Thread::State::ready;
    running_ = next;
    current = next;
    return;
  }
  stacks_.give_back(stack);
  running_ = nullptr;
  resume(next, &nowhere_);
}

void Engine::fail(const std::string& problem) { stop(describe(*running_) + ": " + problem); }

// Abandons all fibers and ends the launch.
void Engine::stop(const std::string& report) {
  error_ = report;
  switch_context(&nowhere_, &main_);
  __builtin_unreachable();
}

// ------------------------------------------------------------------------------------------------ schedules

Thread* Engine::pick() {
  if (ready_warps_ == 0) return nullptr;
  switch (options_.schedule) {
    case Schedule::in_order: {
      Warp& w = warps_[lowest(ready_warps_)];
      return &w.lanes[lowest(w.ready)];
    }
    case Schedule::reverse: {
      Warp& w = warps_[63 - static_cast<u32>(__builtin_clzll(ready_warps_))];
      return &w.lanes[31 - static_cast<u32>(__builtin_clz(w.ready))];
    }
    case Schedule::random: {
      const u32 count = static_cast<u32>(__builtin_popcountll(ready_warps_));
      Warp& w = warps_[nth(ready_warps_, random_.below(count))];
      return &w.lanes[nth(w.ready, random_.below(static_cast<u32>(__builtin_popcount(w.ready))))];
    }
    case Schedule::priority:
      return pick_by_priority();
  }
  return nullptr;
}

Thread* Engine::pick_by_priority() {
  if (random_.below(PRIORITY_PERIOD) + 1 < options_.depth) {
    if (lowest_priority_ == 0) lowest_priority_ = 0x3fffffff;
    warps_[last_warp_].priority = --lowest_priority_;
  }
  u32 best = lowest(ready_warps_);
  for (u64 left = ready_warps_ & (ready_warps_ - 1); left != 0; left &= left - 1) {
    if (warps_[lowest(left)].priority > warps_[best].priority) best = lowest(left);
  }
  last_warp_ = best;
  Warp& w = warps_[best];
  return &w.lanes[nth(w.ready, random_.below(static_cast<u32>(__builtin_popcount(w.ready))))];
}

// The next ready thread after the running one.
Thread* Engine::pick_cyclic() {
  const u32 lane = running_->number % 32, warp = running_->warp;
  const u32 later = lane == 31 ? 0 : warps_[warp].ready >> (lane + 1) << (lane + 1);
  if (later != 0) return &warps_[warp].lanes[lowest(later)];
  const u64 warps = warp == 63 ? 0 : ready_warps_ >> (warp + 1) << (warp + 1);
  Warp& w = warps_[lowest(warps != 0 ? warps : ready_warps_)];
  return &w.lanes[lowest(w.ready)];
}

void Engine::interleave(const char* file, int line) {
  Thread& t = self();
  t.file = file;
  t.line = line;
  if (++idle_ > PATIENCE) {
    fail("no progress at " + place(file, line) + ": " + std::to_string(PATIENCE) +
         " atomic operations in a row and nothing else; does it wait for a block that cannot run yet?");
  }
  if (deterministic()) {
    if (idle_ % 64 == 0) resume(pick_cyclic(), &t.context);
  } else if (random_.below(2) == 0) {
    give_way();
  }
}

// ------------------------------------------------------------------------------------------------ barriers

int Engine::barrier(Vote vote, int predicate, const char* file, int line) {
  Thread& t = self();
  Block& b = *warps_[t.warp].block;
  t.file = file;
  t.line = line;
  t.op = Op::barrier;
  if (b.arrived == 0) {
    b.first_arrived = &t;
    b.vote = vote;
  } else if (!same_site(*b.first_arrived, file, line) || b.vote != vote) {
    fail("divergent barrier: this thread is at " + place(file, line) + ", thread " +
         std::to_string(b.first_arrived->number) + " waits at " + place(b.first_arrived->file, b.first_arrived->line));
  }
  b.counted += predicate != 0;
  park(t);
  if (++b.arrived == b.live) release(b);
  give_way();
  return b.result;
}

void Engine::release(Block& b) {
  const u32 arrived = b.arrived;
  if (arrived == 0) return;
  b.result = b.vote == Vote::count ? b.counted
             : b.vote == Vote::all ? b.counted == static_cast<int>(arrived)
                                   : b.counted != 0;
  b.arrived = 0;
  b.counted = 0;
  idle_ = 0;
  for (u32 i = 0; i < b.warps; ++i) {
    Warp& w = warps_[b.first_warp + i];
    for (u32 left = w.live; left != 0; left &= left - 1) {
      wake(w.lanes[lowest(left)]);
    }
    if (options_.schedule == Schedule::priority) w.priority = static_cast<u32>(random_.next() >> 33) | 0x40000000u;
  }
}

// ------------------------------------------------------------------------------------------------ warp collectives

void Engine::collective(Op op, u32 mask, void* arguments, const char* file, int line) {
  Thread& t = self();
  Warp& w = warps_[t.warp];
  t.file = file;
  t.line = line;
  t.op = op;
  t.mask = mask;
  t.arguments = arguments;
  check_arrival(t);
  w.parked |= 1u << (t.number % 32);
  park(t);
  complete(w, mask);
  give_way();
}

// Runs the collective of `mask` if all its lanes that have not exited have arrived.
bool Engine::complete(Warp& w, u32 mask) {
  const u32 lanes = mask & w.live;
  if ((w.parked & lanes) != lanes || lanes == 0) return false;
  if (!w.uniform) {
    for (u32 left = lanes; left != 0; left &= left - 1) {
      if (w.lanes[lowest(left)].mask != mask) return false;
    }
  }
  execute(*this, w, lanes);
  w.parked &= ~lanes;
  idle_ = 0;
  for (u32 left = lanes; left != 0; left &= left - 1) {
    Thread& t = w.lanes[lowest(left)];
    t.state = Thread::State::ready;
    t.op = Op::none;
  }
  w.ready |= lanes;
  ready_warps_ |= u64(1) << (&w - warps_);
  return true;
}

void Engine::check_arrival(Thread& t) {
  Warp& w = warps_[t.warp];
  const u32 lane = t.number % 32;
  const bool aligned = t.op == Op::load_matrices || t.op == Op::multiply;
  if (w.parked == 0) {
    w.first = &t;
    w.uniform = true;
    if (!(t.mask >> lane & 1)) {
      fail(arrival(t) + ": lane " + std::to_string(lane) + " is not in its own mask");
    }
    if (aligned && (t.mask & ~w.live) != 0) {
      fail(arrival(t) + ": needs the whole warp, but lanes " + hex(t.mask & ~w.live) + " have exited or do not exist");
    }
    return;
  }
  const Thread& o = *w.first;
  const bool same = o.op == t.op && o.mask == t.mask && o.line == t.line && o.file == t.file;
  if (w.uniform && same && t.mask >> lane & 1) return;
  w.uniform = false;
  check_against(t, w);
}

// Two lanes may wait for each other only in the same operation with the same mask.
void Engine::check_against(const Thread& t, const Warp& w) {
  const u32 lane = t.number % 32;
  if (!(t.mask >> lane & 1)) fail(arrival(t) + ": lane " + std::to_string(lane) + " is not in its own mask");
  const bool aligned = t.op == Op::load_matrices || t.op == Op::multiply;
  for (u32 left = w.parked & t.mask; left != 0; left &= left - 1) {
    const Thread& o = w.lanes[lowest(left)];
    if (!(o.mask >> lane & 1)) continue;
    if (o.op == t.op && o.mask == t.mask && (!aligned || same_site(o, t.file, t.line))) continue;
    fail("mismatch in a warp: this thread is in " + arrival(t) + ", lane " + std::to_string(lowest(left)) + " in " +
         arrival(o));
  }
}

}  // namespace sim
