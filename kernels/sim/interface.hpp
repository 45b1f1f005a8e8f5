// The simulator's functions for compiled kernels. Included by cuda_builtins.hpp, before common/ptx.cuh, which uses
// them. No standard headers, so that a kernel sees no more than under nvcc.
#pragma once

struct uint3 {
  unsigned int x, y, z;
};

// The caller's place, as the last two parameters of every collective: errors name the kernel's own line.
#define SIM_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace sim {

// The built-in variables of a block.
struct BlockView {
  uint3 index;
  uint3 block_dim;
  uint3 grid_dim;
  unsigned char* shared;
};

// The built-in variables of a thread.
struct ThreadView {
  uint3 index;
  const BlockView* block;
};

// The thread that runs on this operating-system thread. A fiber never leaves its operating-system thread.
extern __thread ThreadView* current;

inline unsigned char* shared_memory() { return current->block->shared; }

// True if this file is compiled to report its accesses; see traffic_hooks.hpp.
#ifdef __SANITIZE_THREAD__
#define SIM_COUNTED true
#else
#define SIM_COUNTED false
#endif

// An entry point, and its registration: a static object per KERNEL.
using Entry = void (*)(const void* params, const float* gate);
struct Registration {
  Registration(const char* name, unsigned long params_bytes, unsigned int threads, Entry entry,
               bool counted = SIM_COUNTED);
};

// Counts a read or a write of `bytes` bytes at `address`, if the launch is counted.
void touch(const void* address, unsigned long bytes, bool write);

// Barriers. A thread waits until every thread of its block that has not exited has arrived.
enum class Vote { none, count, all, any };
int barrier(Vote vote, int predicate, const char* file, int line);

// Warp collectives: each waits until all lanes of `mask` that have not exited call the same one with the same mask.
enum class Shuffle { index, up, down, exclusive_or };
unsigned long long shuffle(Shuffle kind, unsigned int mask, unsigned long long value, int argument, int width,
                           const char* file, int line);
enum class Reduce { add, min_signed, min_unsigned, max_signed, max_unsigned, bit_and, bit_or, bit_xor };
unsigned int reduce(Reduce kind, unsigned int mask, unsigned int value, const char* file, int line);
unsigned int ballot(unsigned int mask, int predicate, const char* file, int line);
void warp_barrier(unsigned int mask, const char* file, int line);

// Four 8x8 matrices of 16-bit elements from shared memory; the whole warp.
void load_matrices(unsigned int* r, const void* row, bool transposed, const char* file, int line);

// d[mi][nj][4] += a[mi][4] b[nj][2], fragments of m16n8k16; the whole warp.
enum class Half { f16, bf16 };
void multiply(Half type, int mi, int nj, float* d, const unsigned int* a, const unsigned int* b, const char* file,
              int line);

// Ends the launch for an access of `bytes` bytes whose address is not a multiple of `bytes`.
[[noreturn]] void misaligned(const void* address, unsigned long bytes);
template <typename V>
inline void check_alignment(const V* p) {
  if (reinterpret_cast<unsigned long>(p) % sizeof(V) != 0) misaligned(p, sizeof(V));
}

// Asynchronous copies of 4, 8 or 16 bytes to shared memory: `bytes` come from `src`, and the rest is zero.
void copy_async(void* dst, const void* src, unsigned int size, unsigned int bytes, const char* file, int line);
void copy_commit();
void copy_wait(unsigned int pending, const char* file, int line);

// A point where another thread may run: before every atomic operation.
void interleave(const char* file, int line);

// The result of an approximate instruction: the exact value, or one up to two units in the last place off.
float approximate(float exact);

// Conversions of 16-bit types, as `cvt` does them: to nearest even, every NaN to the canonical one.
float f16_to_float(unsigned short bits);
unsigned short float_to_f16(float v);
unsigned short float_to_bf16(float v);

}  // namespace sim
