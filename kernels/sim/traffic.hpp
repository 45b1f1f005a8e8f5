// Which bytes of global memory a launch touches, in the units of a GPU's memory.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.hpp"

namespace sim {

// The sectors that one launch reads and writes, each counted once.
class Traffic {
 public:
  static constexpr uintptr_t SECTOR = 32;  // what a GPU's caches fetch and write back: 32 aligned bytes

  explicit Traffic(const Memory& memory);
  // Shared memory, stacks and whatever else is in no buffer does not count.
  void touch(const void* address, size_t bytes, bool write);
  uint64_t bytes_read() const { return count(&Buffer::read); }
  uint64_t bytes_written() const { return count(&Buffer::written); }

 private:
  using Sectors = std::vector<uint64_t>;  // a bit a sector
  struct Buffer {
    uintptr_t begin, end;
    Sectors read, written;
  };
  uint64_t count(Sectors Buffer::* sectors) const;

  std::vector<Buffer> buffers_;
  size_t last_ = 0;  // the buffer that was touched last: most often the next one too
};

// Counts for the launch of this operating-system thread, where it is to be counted.
extern __thread Traffic* traffic;

}  // namespace sim
