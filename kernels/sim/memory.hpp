// Memory that detects stray accesses: global buffers and the shared memory of a block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace sim {

constexpr unsigned char POISON = 0xff;  // NaN in f32, f16 and bf16

// Pages between two guard pages.
class Guarded {
 public:
  Guarded() = default;
  Guarded(Guarded&& o) noexcept { *this = std::move(o); }
  Guarded& operator=(Guarded&& o) noexcept {
    std::swap(map_, o.map_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }
  ~Guarded() { release(); }
  bool reserve(size_t bytes);
  void release();
  unsigned char* begin() const { return map_ + page(); }
  unsigned char* end() const { return begin() + bytes_; }
  // True if `address` is in the pages or their guards.
  bool owns(const void* address) const;
  static size_t page();

 private:
  unsigned char* map_ = nullptr;
  size_t bytes_ = 0;
};

// A block's shared memory, aligned to 128 bytes and in some blocks to no more.
class SharedArena {
 public:
  static constexpr size_t ALIGNMENT = 128, REDZONE = 256, MOST_SHIFT = 7;
  bool reserve(size_t limit);
  // Poisons and returns the memory of a block that asked for `bytes`. It ends, up to its alignment, at the guard page
  // or `shift` times the alignment before it; `shift` is at most MOST_SHIFT.
  unsigned char* reset(size_t bytes, size_t shift);
  // Describes a byte written outside; else empty.
  std::string check() const;
  bool owns(const void* address) const { return pages_.owns(address); }
  unsigned char* begin() const { return begin_; }
  size_t bytes() const { return bytes_; }

 private:
  Guarded pages_;
  unsigned char* begin_ = nullptr;
  size_t bytes_ = 0;
};

// The global buffers of one simulated device.
class Memory {
 public:
  // A poisoned buffer. It ends at a guard page, up to the rounding of its size to `alignment`; the rest of its pages is
  // poisoned and checked. nullptr if out of memory.
  void* allocate(size_t bytes, size_t alignment);
  void release(void* address);
  // Describes a byte written outside all buffers and poisons it again; else empty.
  std::string check();
  // The address and size in bytes of every buffer.
  std::vector<std::pair<const void*, size_t>> buffers() const;
  // Where `address` lies relative to the nearest buffer.
  std::string describe(const void* address) const;

 private:
  struct Buffer {
    Guarded pages;
    unsigned char* begin;
    size_t bytes;
  };
  mutable std::mutex mutex_;
  std::vector<Buffer> buffers_;
};

}  // namespace sim
