// The global memory that a launch touches, in the sectors of a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.hpp"

namespace sim {

// The sectors that one launch reads and writes, each counted once.
class Traffic {
 public:
  static constexpr uintptr_t SECTOR = 32;  // a GPU's caches fetch and write back 32 aligned bytes

  explicit Traffic(const Memory& memory);
  // Shared memory, stacks and all else outside of buffers do not count.
  void touch(const void* address, size_t bytes, bool write);
  uint64_t bytes_read() const { return count(&Buffer::read); }
  uint64_t bytes_written() const { return count(&Buffer::written); }

 private:
  using Sectors = std::vector<uint64_t>;  // a bit per sector
  struct Buffer {
    uintptr_t begin, end;
    Sectors read, written;
  };
  uint64_t count(Sectors Buffer::* sectors) const;

  std::vector<Buffer> buffers_;
  size_t last_ = 0;  // the buffer touched last: most often the next one, too
};

// Counts for the launch of this operating-system thread; null if it is not counted.
extern __thread Traffic* traffic;

}  // namespace sim
