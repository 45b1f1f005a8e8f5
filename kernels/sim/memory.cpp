#include "memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace sim {

namespace {

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

// The first byte that is not poison, or end.
const unsigned char* first_written(const unsigned char* begin, const unsigned char* end) {
  for (uint64_t word; end - begin >= 8; begin += 8) {
    memcpy(&word, begin, 8);
    if (~word != 0) break;
  }
  return std::find_if(begin, end, [](unsigned char byte) { return byte != POISON; });
}

std::string relative(const unsigned char* address, const unsigned char* begin, size_t bytes) {
  const std::string size = std::to_string(bytes) + " bytes";
  if (address < begin) return std::to_string(begin - address) + " bytes before a buffer of " + size;
  if (address >= begin + bytes) {
    return std::to_string(address - (begin + bytes)) + " bytes past the end of a buffer of " + size;
  }
  return "byte " + std::to_string(address - begin) + " of a buffer of " + size;
}

}  // namespace

size_t Guarded::page() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

bool Guarded::reserve(size_t bytes) {
  bytes = round_up(bytes, page());
  const size_t total = bytes + 2 * page();
  void* map = mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return false;
  map_ = static_cast<unsigned char*>(map);
  bytes_ = bytes;
  if (mprotect(begin(), bytes_, PROT_READ | PROT_WRITE) == 0) return true;
  release();
  return false;
}

void Guarded::release() {
  if (map_ != nullptr) munmap(map_, bytes_ + 2 * page());
  map_ = nullptr;
}

bool Guarded::owns(const void* address) const {
  const auto* p = static_cast<const unsigned char*>(address);
  return map_ != nullptr && p >= map_ && p < end() + page();
}

bool SharedArena::reserve(size_t limit) { return pages_.reserve(limit + REDZONE + MOST_SHIFT * ALIGNMENT); }

unsigned char* SharedArena::reset(size_t bytes, size_t shift) {
  bytes_ = bytes;
  begin_ = pages_.end() - round_up(bytes, ALIGNMENT) - shift * ALIGNMENT;
  memset(begin_ - REDZONE, POISON, static_cast<size_t>(pages_.end() - begin_) + REDZONE);
  return begin_;
}

std::string SharedArena::check() const {
  const unsigned char* front = first_written(begin_ - REDZONE, begin_);
  if (front != begin_) return std::to_string(begin_ - front) + " bytes before the block's shared memory";
  const unsigned char* back = first_written(begin_ + bytes_, pages_.end());
  if (back == pages_.end()) return {};
  return "byte " + std::to_string(back - begin_) + " of shared memory, of which the launch asked for " +
         std::to_string(bytes_);
}

void* Memory::allocate(size_t bytes, size_t alignment) {
  const size_t rounded = std::max(round_up(bytes, alignment), alignment);
  Buffer buffer{Guarded(), nullptr, bytes};
  if (rounded < bytes || !buffer.pages.reserve(rounded)) return nullptr;
  buffer.begin = buffer.pages.end() - rounded;
  memset(buffer.pages.begin(), POISON, static_cast<size_t>(buffer.pages.end() - buffer.pages.begin()));
  unsigned char* begin = buffer.begin;
  const std::lock_guard<std::mutex> lock(mutex_);
  buffers_.push_back(std::move(buffer));
  return begin;
}

void Memory::release(void* address) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = 0; i < buffers_.size(); ++i) {
    if (buffers_[i].begin != address) continue;
    std::swap(buffers_[i], buffers_.back());
    buffers_.pop_back();
    return;
  }
}

std::string Memory::check() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (Buffer& b : buffers_) {
    const unsigned char* end = b.begin + b.bytes;
    const unsigned char* front = first_written(b.pages.begin(), b.begin);
    const unsigned char* back = first_written(end, b.pages.end());
    if (front == b.begin && back == b.pages.end()) continue;
    std::string where = relative(front != b.begin ? front : back, b.begin, b.bytes);
    memset(b.pages.begin(), POISON, static_cast<size_t>(b.begin - b.pages.begin()));
    memset(b.begin + b.bytes, POISON, static_cast<size_t>(b.pages.end() - end));
    return where;
  }
  return {};
}

std::vector<std::pair<const void*, size_t>> Memory::buffers() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::pair<const void*, size_t>> all;
  for (const Buffer& b : buffers_) all.emplace_back(b.begin, b.bytes);
  return all;
}

std::string Memory::describe(const void* address) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto* p = static_cast<const unsigned char*>(address);
  const auto distance = [p](const Buffer& b) -> size_t {
    if (p < b.begin) return static_cast<size_t>(b.begin - p);
    return p >= b.begin + b.bytes ? static_cast<size_t>(p - b.begin - b.bytes) : 0;
  };
  const auto nearest = std::min_element(buffers_.begin(), buffers_.end(),
                                        [&](const Buffer& a, const Buffer& b) { return distance(a) < distance(b); });
  if (nearest == buffers_.end() || distance(*nearest) > (size_t(1) << 32)) return "far from every buffer";
  return relative(p, nearest->begin, nearest->bytes);
}

}  // namespace sim
