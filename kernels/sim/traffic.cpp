#include "traffic.hpp"

#include "interface.hpp"

namespace sim {

__thread Traffic* traffic = nullptr;

Traffic::Traffic(const Memory& memory) {
  for (const auto& [begin, bytes] : memory.buffers()) {
    const auto first = reinterpret_cast<uintptr_t>(begin);
    const size_t words = ((first + bytes) / SECTOR - first / SECTOR) / 64 + 1;
    buffers_.push_back({first, first + bytes, Sectors(words), Sectors(words)});
  }
}

void Traffic::touch(const void* address, size_t bytes, bool write) {
  if (bytes == 0) return;
  const auto first = reinterpret_cast<uintptr_t>(address);
  const auto holds = [first](const Buffer& b) { return first >= b.begin && first < b.end; };
  if (last_ >= buffers_.size() || !holds(buffers_[last_])) {
    size_t i = 0;
    while (i < buffers_.size() && !holds(buffers_[i])) ++i;
    if (i == buffers_.size()) return;
    last_ = i;
  }
  Buffer& b = buffers_[last_];
  Sectors& sectors = write ? b.written : b.read;
  const uintptr_t origin = b.begin / SECTOR, end = first + bytes < b.end ? first + bytes : b.end;
  for (uintptr_t s = first / SECTOR; s * SECTOR < end; ++s) {
    sectors[(s - origin) / 64] |= uint64_t(1) << ((s - origin) % 64);
  }
}

uint64_t Traffic::count(Sectors Buffer::* sectors) const {
  uint64_t count = 0;
  for (const Buffer& b : buffers_) {
    for (const uint64_t word : b.*sectors) count += static_cast<uint64_t>(__builtin_popcountll(word));
  }
  return count * SECTOR;
}

void touch(const void* address, unsigned long bytes, bool write) {
  if (traffic != nullptr) traffic->touch(address, bytes, write);
}

}  // namespace sim
