// The simulator as C functions; src/device/sim/ffi.rs declares them.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "engine.hpp"
#include "tensor_core.hpp"
#include "traffic.hpp"

namespace sim {

namespace {

struct Kernel {
  const char* name;
  size_t params_bytes;
  u32 threads;
  Entry entry;
};

// Kernels, added before main. If there is no memory for them, there is none for an exception either: the process ends
// with one line.
class Kernels {
 public:
  void push_back(const Kernel& kernel) {
    auto* const more = static_cast<Kernel*>(realloc(first_, (count_ + 1) * sizeof(Kernel)));
    if (more == nullptr) {
      static const char line[] = "error: out of memory: the table of kernels\n";
      if (write(2, line, sizeof line - 1) < 0) _exit(1);  // nobody listens
      _exit(1);
    }
    first_ = more;
    first_[count_++] = kernel;
  }
  size_t size() const { return count_; }
  Kernel* begin() const { return first_; }
  Kernel* end() const { return first_ + count_; }
  Kernel& operator[](size_t i) const { return first_[i]; }

 private:
  Kernel* first_ = nullptr;
  size_t count_ = 0;
};

Kernels& kernels() {
  static Kernels all;
  return all;
}

// The kernels again, compiled to report their accesses, and the mutex that guards them.
Kernels& counted_kernels() {
  static Kernels all;
  return all;
}
std::mutex counted_mutex;

// The bytes that a launch read and wrote.
struct Counted {
  u64 bytes_read, bytes_written;
};

// The counted launches of this operating-system thread that residuum_sim_next_counted has not returned yet.
thread_local std::deque<Counted> counted;

// One simulated device.
struct Device {
  Options options;
  Memory memory;
  std::mutex queue;
  u64 launches = 0;
};

// Idle engines, kept with their stacks for later launches; never more than ran at once.
class Pool {
 public:
  std::unique_ptr<Engine> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Engine>();
    std::unique_ptr<Engine> engine = std::move(free_.back());
    free_.pop_back();
    return engine;
  }
  void give_back(std::unique_ptr<Engine> engine) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(engine));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Engine>> free_;
};

Pool& pool() {
  static Pool* const all = new Pool;  // outlives the threads that launch
  return *all;
}

bool replacing = false;

// Loads kernels from the shared object RESIDUUM_SIM_KERNELS in place of compiled-in kernels, so that a test binary can
// run a changed kernel. Returns an empty string or the problem.
const std::string& load_replacements() {
  static const std::string problem = []() -> std::string {
    const char* path = getenv("RESIDUUM_SIM_KERNELS");
    if (path == nullptr) return {};
    replacing = true;
    const bool loaded = dlopen(path, RTLD_NOW | RTLD_LOCAL) != nullptr;
    replacing = false;
    return loaded ? std::string() : std::string("RESIDUUM_SIM_KERNELS: ") + dlerror();
  }();
  return problem;
}

std::string find(const Kernels& all, const char* name, size_t params_bytes, u32 threads, Kernel* found) {
  for (const Kernel& k : all) {
    if (strcmp(k.name, name) != 0) continue;
    if (k.params_bytes != params_bytes) {
      return "the launch has " + std::to_string(params_bytes) + " bytes of parameters, the kernel takes " +
             std::to_string(k.params_bytes);
    }
    if (k.threads != threads) {
      return "the launch has " + std::to_string(threads) + " threads, the kernel is compiled for " +
             std::to_string(k.threads);
    }
    *found = k;
    return {};
  }
  return "no kernel of this name; there are " + std::to_string(all.size());
}

std::string find(const Options& options, const char* name, size_t params_bytes, u32 threads, Kernel* found) {
  if (options.traffic == 0) return find(kernels(), name, params_bytes, threads, found);
  const std::lock_guard<std::mutex> lock(counted_mutex);
  return find(counted_kernels(), name, params_bytes, threads, found);
}

std::string run_counted(Engine& engine, const Job& job, Device& device, u64 number) {
  Traffic now(device.memory);
  traffic = &now;
  std::string error = engine.run(job, device.options, number, device.memory);
  traffic = nullptr;
  counted.push_back({now.bytes_read(), now.bytes_written()});
  return error;
}

std::string run(Device& device, const Job& launch, size_t params_bytes) {
  Kernel kernel;
  const std::string problem = find(device.options, launch.name, params_bytes, launch.threads, &kernel);
  if (!problem.empty()) return problem;
  if (launch.threads == 0 || launch.threads > 1024) return std::to_string(launch.threads) + " threads in a block";
  if (launch.shared_bytes > device.options.shared_limit) {
    return std::to_string(launch.shared_bytes) + " bytes of shared memory, at most " +
           std::to_string(device.options.shared_limit);
  }
  Job job = launch;
  job.entry = kernel.entry;
  const std::lock_guard<std::mutex> lock(device.queue);
  std::unique_ptr<Engine> engine = pool().take();
  const u64 number = device.launches++;
  std::string error = device.options.traffic != 0 ? run_counted(*engine, job, device, number)
                                                  : engine->run(job, device.options, number, device.memory);
  pool().give_back(std::move(engine));
  const std::string stray = device.memory.check();
  if (!stray.empty()) error += (error.empty() ? "" : "\n") + ("write to " + stray);
  return error.empty() ? error : error + " [launch " + std::to_string(number) + "]";
}

// The message if there is no memory even for a message.
char no_memory[] = "out of memory: the simulator";

char* copy_text(const std::string& text) {
  if (text.empty()) return nullptr;
  char* const copy = strdup(text.c_str());
  return copy != nullptr ? copy : no_memory;
}

// The text that `work` returns, or `no_memory`: no exception may leave a C function.
template <typename Work>
char* text_of(const Work& work) {
  try {
    return copy_text(work());
  } catch (const std::bad_alloc&) {
    return no_memory;
  }
}

}  // namespace

Registration::Registration(const char* name, unsigned long params_bytes, unsigned int threads, Entry entry,
                           bool counted) {
  const Kernel kernel{name, params_bytes, threads, entry};
  if (counted) {
    const std::lock_guard<std::mutex> lock(counted_mutex);
    counted_kernels().push_back(kernel);
    return;
  }
  for (Kernel& k : kernels()) {
    if (!replacing || strcmp(k.name, name) != 0) continue;
    k = kernel;
    return;
  }
  kernels().push_back(kernel);
}

}  // namespace sim

extern "C" {

// If it fails, returns nullptr and sets `problem` to a text to be freed with residuum_sim_free_text.
void* residuum_sim_new(const sim::Options* options, char** problem) {
  sim::Device* device = nullptr;
  *problem = sim::text_of([&]() -> std::string {
    const std::string& replacing = sim::load_replacements();
    if (!replacing.empty()) return replacing;
    device = new sim::Device;
    device->options = *options;
    return {};
  });
  return device;
}

void residuum_sim_free(void* device) { delete static_cast<sim::Device*>(device); }

// nullptr if out of memory.
void* residuum_sim_allocate(void* device, size_t bytes) {
  auto& d = *static_cast<sim::Device*>(device);
  try {
    return d.memory.allocate(bytes, d.options.alignment);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void residuum_sim_release(void* device, void* address) { static_cast<sim::Device*>(device)->memory.release(address); }

// Returns nullptr, or the problem as a text to be freed with residuum_sim_free_text.
char* residuum_sim_launch(void* device, const char* name, const void* params, size_t params_bytes, const float* gate,
                          uint32_t threads, const uint32_t* grid, uint32_t shared_bytes) {
  const sim::Job job{name, nullptr, params, gate, threads, {grid[0], grid[1], grid[2]}, shared_bytes};
  return sim::text_of([&] { return sim::run(*static_cast<sim::Device*>(device), job, params_bytes); });
}

void residuum_sim_free_text(char* text) {
  if (text != sim::no_memory) free(text);
}

// Loads a shared object of kernels that report their accesses. Returns nullptr, or the problem as a text to be freed
// with residuum_sim_free_text.
char* residuum_sim_load_counted(const char* path) {
  return dlopen(path, RTLD_NOW | RTLD_LOCAL) != nullptr ? nullptr : strdup(dlerror());
}

// Takes the earliest counted launch of this thread that it has not returned yet; false if there is none.
bool residuum_sim_next_counted(uint64_t* bytes_read, uint64_t* bytes_written) {
  if (sim::counted.empty()) return false;
  *bytes_read = sim::counted.front().bytes_read;
  *bytes_written = sim::counted.front().bytes_written;
  sim::counted.pop_front();
  return true;
}

size_t residuum_sim_kernels() { return sim::kernels().size(); }

void residuum_sim_kernel(size_t i, const char** name, size_t* params_bytes, uint32_t* threads) {
  const auto& k = sim::kernels()[i];
  *name = k.name;
  *params_bytes = k.params_bytes;
  *threads = k.threads;
}

float residuum_sim_dot(uint32_t bf16, uint32_t arithmetic, uint32_t n, const uint16_t* a, const uint16_t* b, float c) {
  return sim::dot(bf16 ? sim::Half::bf16 : sim::Half::f16, static_cast<sim::Arithmetic>(arithmetic),
                  static_cast<int>(n), a, b, c);
}

float residuum_sim_from_f16(uint16_t bits) { return sim::f16_to_float(bits); }
uint16_t residuum_sim_to_f16(float v) { return sim::float_to_f16(v); }
uint16_t residuum_sim_to_bf16(float v) { return sim::float_to_bf16(v); }
}
