// A file layer that injects faults. Loaded before libc, it counts a process's calls on files whose path contains
// $FAULT_INSIDE. At call number $FAULT_AT, $FAULT_KIND `once` fails the call, `on` fails it and all later ones, `short`
// writes half, `kill` and `int` end the process. $FAULT_LOG receives the name of every call.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>

namespace {

std::atomic<int> calls{0};
std::atomic<bool> ours[1024];

template <typename F>
F next(F, const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

bool inside(const char* path) {
  const char* mark = getenv("FAULT_INSIDE");
  return mark != nullptr && path != nullptr && strstr(path, mark) != nullptr;
}

bool inside(int fd) { return fd >= 0 && fd < 1024 && ours[fd]; }

void log(const char* name) {
  const char* path = getenv("FAULT_LOG");
  if (path == nullptr) return;
  const int fd = next(&open64, "open64")(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const auto put = next(&write, "write");
  if (put(fd, name, strlen(name)) < 0 || put(fd, "\n", 1) < 0) abort();
  close(fd);
}

enum class Fault { None, Fail, Short };

Fault fault(const char* name) {
  log(name);
  const int call = ++calls;
  const char *at = getenv("FAULT_AT"), *kind = getenv("FAULT_KIND");
  if (at == nullptr || kind == nullptr) return Fault::None;
  const bool on = strcmp(kind, "on") == 0;
  if (call < atoi(at) || (call > atoi(at) && !on)) return Fault::None;
  if (strcmp(kind, "kill") == 0) raise(SIGKILL);
  if (strcmp(kind, "int") == 0) {
    kill(getpid(), SIGINT);
    usleep(200'000);  // the process ends meanwhile, on another thread, unless that waits for this call
    return Fault::None;
  }
  if (strcmp(kind, "short") == 0) return Fault::Short;
  errno = strcmp(name, "flock") == 0 ? ENOLCK : ENOSPC;
  return Fault::Fail;
}

}  // namespace

#define FAILS(name) (fault(name) == Fault::Fail)

extern "C" {

int open64(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = va_arg(arguments, mode_t);
  va_end(arguments);
  if (inside(path) && FAILS("open")) return -1;
  const int fd = next(&open64, "open64")(path, flags, mode);
  if (fd >= 0 && fd < 1024) ours[fd] = inside(path);
  return fd;
}

int close(int fd) {
  if (fd >= 0 && fd < 1024) ours[fd] = false;
  return next(&close, "close")(fd);
}

ssize_t write(int fd, const void* data, size_t bytes) {
  if (!inside(fd)) return next(&write, "write")(fd, data, bytes);
  const Fault what = fault("write");
  if (what == Fault::Fail) return -1;
  return next(&write, "write")(fd, data, what == Fault::Short ? (bytes + 1) / 2 : bytes);
}

ssize_t read(int fd, void* data, size_t bytes) {
  if (!inside(fd)) return next(&read, "read")(fd, data, bytes);
  const Fault what = fault("read");
  if (what == Fault::Fail) return -1;
  return next(&read, "read")(fd, data, what == Fault::Short ? (bytes + 1) / 2 : bytes);
}

int statx(int folder, const char* path, int flags, unsigned mask, struct statx* out) {
  if (inside(path) && FAILS("statx")) return -1;
  return next(&statx, "statx")(folder, path, flags, mask, out);
}

#define PATH_CALL(name, declaration, arguments)              \
  int name declaration {                                     \
    if (inside(path) && FAILS(#name)) return -1;             \
    return next(&name, #name) arguments;                     \
  }

PATH_CALL(mkdir, (const char* path, mode_t mode), (path, mode))
PATH_CALL(rename, (const char* path, const char* to), (path, to))
PATH_CALL(unlink, (const char* path), (path))
PATH_CALL(rmdir, (const char* path), (path))
PATH_CALL(chmod, (const char* path, mode_t mode), (path, mode))

#define FD_CALL(name, declaration, arguments)              \
  int name declaration {                                   \
    if (inside(fd) && FAILS(#name)) return -1;             \
    return next(&name, #name) arguments;                   \
  }

int flock(int fd, int operation);

FD_CALL(fsync, (int fd), (fd))
FD_CALL(fdatasync, (int fd), (fd))
FD_CALL(ftruncate64, (int fd, off64_t length), (fd, length))
FD_CALL(fchmod, (int fd, mode_t mode), (fd, mode))
FD_CALL(flock, (int fd, int operation), (fd, operation))

}  // extern "C"
