// Warp collectives and asynchronous copies, as interface.hpp declares them for kernels.
#include <algorithm>
#include <cstring>

#include "engine.hpp"
#include "tensor_core.hpp"

namespace sim {

namespace {

struct ShuffleArguments {
  Shuffle kind;
  int argument, width;
  u64 value, result;
};
struct ReduceArguments {
  Reduce kind;
  u32 value, result;
};
struct BallotArguments {
  int predicate;
  u32 result;
};
struct MatrixArguments {
  const u8* row;
  u32* r;
  bool transposed;
};

template <typename T>
T& arguments(Warp& w, u32 lane) {
  return *static_cast<T*>(w.lanes[lane].arguments);
}

template <typename F>
void for_lanes(u32 lanes, F f) {
  for (; lanes != 0; lanes &= lanes - 1) f(static_cast<u32>(__builtin_ctz(lanes)));
}

// The lane that `lane` reads, by the PTX ISA's shfl; itself if the source is out of range.
u32 source_lane(u32 lane, const ShuffleArguments& a) {
  const u32 first = lane & ~static_cast<u32>(a.width - 1), last = first + static_cast<u32>(a.width) - 1;
  const u32 argument = static_cast<u32>(a.argument) & 31;
  switch (a.kind) {
    case Shuffle::index: return first | (argument & static_cast<u32>(a.width - 1));
    case Shuffle::up: return lane < first + argument ? lane : lane - argument;
    case Shuffle::down: return lane + argument > last ? lane : lane + argument;
    case Shuffle::exclusive_or: return (lane ^ argument) > last ? lane : lane ^ argument;
  }
  return lane;
}

void shuffle_lanes(Warp& w, u32 lanes) {
  for_lanes(lanes, [&](u32 lane) {
    auto& a = arguments<ShuffleArguments>(w, lane);
    const u32 source = source_lane(lane, a);
    // A lane outside the mask provides no value.
    a.result = lanes >> source & 1 ? arguments<ShuffleArguments>(w, source).value : ~u64(0);
  });
}

u32 combine(Reduce kind, u32 a, u32 b) {
  const auto sa = static_cast<int32_t>(a), sb = static_cast<int32_t>(b);
  switch (kind) {
    case Reduce::add: return a + b;
    case Reduce::min_signed: return sa < sb ? a : b;
    case Reduce::min_unsigned: return a < b ? a : b;
    case Reduce::max_signed: return sa > sb ? a : b;
    case Reduce::max_unsigned: return a > b ? a : b;
    case Reduce::bit_and: return a & b;
    case Reduce::bit_or: return a | b;
    case Reduce::bit_xor: return a ^ b;
  }
  return 0;
}

void reduce_lanes(Warp& w, u32 lanes) {
  const u32 first = static_cast<u32>(__builtin_ctz(lanes));
  u32 total = arguments<ReduceArguments>(w, first).value;
  for_lanes(lanes & (lanes - 1), [&](u32 lane) {
    const auto& a = arguments<ReduceArguments>(w, lane);
    total = combine(a.kind, total, a.value);
  });
  for_lanes(lanes, [&](u32 lane) { arguments<ReduceArguments>(w, lane).result = total; });
}

void ballot_lanes(Warp& w, u32 lanes) {
  u32 bits = 0;
  for_lanes(lanes, [&](u32 lane) { bits |= u32(arguments<BallotArguments>(w, lane).predicate != 0) << lane; });
  for_lanes(lanes, [&](u32 lane) { arguments<BallotArguments>(w, lane).result = bits; });
}

// Lane 8m+r has the address of row r of matrix m. Lane l gets element (l/4, 2(l%4)) of each matrix, or of its
// transpose, and the next one in the row.
void load_matrices_of(Warp& w) {
  uint16_t m[4][8][8];
  for (u32 lane = 0; lane < 32; ++lane) memcpy(m[lane / 8][lane % 8], arguments<MatrixArguments>(w, lane).row, 16);
  const bool transposed = arguments<MatrixArguments>(w, 0).transposed;
  for (u32 lane = 0; lane < 32; ++lane) {
    u32* r = arguments<MatrixArguments>(w, lane).r;
    const u32 g = lane / 4, t = lane % 4 * 2;
    for (u32 i = 0; i < 4; ++i) {
      r[i] = transposed ? m[i][t][g] | u32(m[i][t + 1][g]) << 16 : m[i][g][t] | u32(m[i][g][t + 1]) << 16;
    }
  }
}

void require_warp(Engine& e, u32 lanes, Op op) {
  if (lanes == ~0u) return;
  e.fail(std::string(op_name(op)) + " needs the whole warp, but lanes " + hex(~lanes) + " have exited");
}

// Fails unless `p` points to `bytes` aligned bytes in the block's shared memory.
void check_shared(Engine& e, const void* p, u32 bytes, const char* what, const char* file, int line) {
  const int64_t offset = static_cast<const u8*>(p) - e.self().block->shared;
  if (offset < 0 || offset + bytes > e.shared_bytes() || (offset & (bytes - 1)) != 0) {
    e.fail(std::string(what) + " at " + place(file, line) + ": shared address " + std::to_string(offset) +
           " is not that of " + std::to_string(bytes) + " aligned bytes in " + std::to_string(e.shared_bytes()) +
           " bytes of shared memory");
  }
}

void finish(const Copy& c) {
  memcpy(c.dst, c.src, c.bytes);
  memset(c.dst + c.bytes, 0, c.size - c.bytes);
}

}  // namespace

void execute(Engine& e, Warp& w, u32 lanes) {
  const Op op = w.lanes[__builtin_ctz(lanes)].op;
  switch (op) {
    case Op::shuffle: return shuffle_lanes(w, lanes);
    case Op::reduce: return reduce_lanes(w, lanes);
    case Op::ballot: return ballot_lanes(w, lanes);
    case Op::load_matrices: require_warp(e, lanes, op); return load_matrices_of(w);
    case Op::multiply: {
      require_warp(e, lanes, op);
      MmaArguments* all[32];
      for (u32 lane = 0; lane < 32; ++lane) all[lane] = &arguments<MmaArguments>(w, lane);
      return multiply_warp(e.options().arithmetic, all);
    }
    default: return;
  }
}

// ------------------------------------------------------------------------------------------------ for kernels

int barrier(Vote vote, int predicate, const char* file, int line) {
  return engine->barrier(vote, predicate, file, line);
}

unsigned long long shuffle(Shuffle kind, u32 mask, unsigned long long value, int argument, int width, const char* file,
                           int line) {
  ShuffleArguments a{kind, argument, width, value, 0};
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    engine->fail("shuffle at " + place(file, line) + ": width " + std::to_string(width) +
                 " is not a power of two up to 32");
  }
  engine->collective(Op::shuffle, mask, &a, file, line);
  return a.result;
}

u32 reduce(Reduce kind, u32 mask, u32 value, const char* file, int line) {
  ReduceArguments a{kind, value, 0};
  engine->collective(Op::reduce, mask, &a, file, line);
  return a.result;
}

u32 ballot(u32 mask, int predicate, const char* file, int line) {
  BallotArguments a{predicate, 0};
  engine->collective(Op::ballot, mask, &a, file, line);
  return a.result;
}

void warp_barrier(u32 mask, const char* file, int line) {
  engine->collective(Op::warp_barrier, mask, nullptr, file, line);
}

void load_matrices(u32* r, const void* row, bool transposed, const char* file, int line) {
  check_shared(*engine, row, 16, "ldmatrix", file, line);
  MatrixArguments a{static_cast<const u8*>(row), r, transposed};
  engine->collective(Op::load_matrices, ~0u, &a, file, line);
}

void multiply(Half type, int mi, int nj, float* d, const u32* a, const u32* b, const char* file, int line) {
  MmaArguments arguments{type, mi, nj, d, a, b};
  engine->collective(Op::multiply, ~0u, &arguments, file, line);
}

void copy_async(void* dst, const void* src, u32 size, u32 bytes, const char* file, int line) {
  Engine& e = *engine;
  Thread& t = e.self();
  t.file = file;
  t.line = line;
  check_shared(e, dst, size, "cp.async", file, line);
  if (bytes > size) {
    e.fail("cp.async at " + place(file, line) + ": " + std::to_string(bytes) + " bytes of " + std::to_string(size));
  }
  if (bytes != 0 && (reinterpret_cast<uintptr_t>(src) & (size - 1)) != 0) {
    e.fail("cp.async at " + place(file, line) + ": the global address is not a multiple of " + std::to_string(size));
  }
  touch(src, bytes, false);
  const Copy copy{static_cast<u8*>(dst), static_cast<const u8*>(src), size, bytes, t.group};
  const Copies mode = e.options().copies;
  if (mode == Copies::early || (mode == Copies::random && e.random().below(2) == 0)) {
    finish(copy);
    return;
  }
  if (bytes != 0) {  // a bad address faults here, not in the later wait
    static_cast<void>(*static_cast<const volatile u8*>(copy.src));
    static_cast<void>(*static_cast<const volatile u8*>(copy.src + bytes - 1));
  }
  memset(dst, POISON, size);
  t.copies.push_back(copy);
}

void copy_commit() { ++engine->self().group; }

void copy_wait(u32 pending, const char* file, int line) {
  Engine& e = *engine;
  Thread& t = e.self();
  t.file = file;
  t.line = line;
  if (t.group <= pending) return;
  const u32 done = t.group - pending;
  const auto end = std::find_if(t.copies.begin(), t.copies.end(), [done](const Copy& c) { return c.group >= done; });
  // Copies complete in no particular order.
  std::reverse(t.copies.begin(), end);
  if (!e.deterministic()) {
    for (u32 n = static_cast<u32>(end - t.copies.begin()); n > 1; --n) {
      std::swap(t.copies[n - 1], t.copies[e.random().below(n)]);
    }
  }
  std::for_each(t.copies.begin(), end, finish);
  t.copies.erase(t.copies.begin(), end);
}

void interleave(const char* file, int line) { engine->interleave(file, line); }

float approximate(float exact) {
  Engine& e = *engine;
  if (!e.options().approximate || !(exact - exact == 0.0f) || exact == 0.0f) return exact;
  int32_t bits;
  memcpy(&bits, &exact, 4);
  bits += static_cast<int32_t>(e.random().below(5)) - 2;
  float near;
  memcpy(&near, &bits, 4);
  return near - near == 0.0f ? near : exact;
}

}  // namespace sim
