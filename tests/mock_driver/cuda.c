// A mock CUDA driver in host memory: the calls that the library makes, to test the CUDA device without a GPU.
// Streams are lazy: work runs when something waits for it, and an asynchronous copy touches host memory only then. A
// stream that waits for another stream's event runs that stream no further than the event. Kernels are known by name:
// mock_fill fills, mock_shift copies the bytes after its output into it, mock_trap makes an illegal access, and
// gate_conditions_f32 sets conditions.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
enum {
  OK = 0,
  INVALID = 1,
  NO_MEMORY = 2,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  WRONG_CAPTURE = 900,
  FAILED_ON_REQUEST = 999
};

// Settings and counters, for the functions at the end.
static long fail_at = -1, calls, live[8], counts[5];
enum { MEMORY, STREAMS, EVENTS, MODULES, GRAPHS, PINNED, CONTEXTS, SHARED_BYTES };
enum { ALLOCATIONS, PINNED_ALLOCATIONS, GRAPH_LAUNCHES, KERNEL_LAUNCHES, KERNELS_RUN };
static R sticky = OK;
static size_t used, cached, limit = (size_t)1 << 30;

static int setting(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text ? atoi(text) : otherwise;
}

// Starts every call: counts it, fails it if a test asks, and keeps returning the error of a lost context.
#define ENTER                                       \
  if (calls++ == fail_at) return FAILED_ON_REQUEST; \
  if (sticky != OK) return sticky

// The condition of a node. Never freed: pending work may still use it.
typedef struct Condition { uint32_t value, initial; int dead, used; struct Condition* next; } Condition;

// The parameters of gate_conditions_f32.
enum { MOST = 128 };
typedef struct { const float* gates[MOST]; uint64_t handles[MOST]; uint32_t count, unused; } Conditions;

// IF skips `value` ops if the condition `dst` is 0; RESET gives a condition its initial value.
enum { COPY, FILL, TRAP, RECORD, FREE, WAIT, IF, SET_CONDITIONS, RESET, SET_BYTES };
typedef struct Op {
  int kind;
  void *dst, *src;
  size_t bytes;
  uint32_t value;
  const float* gate;  // a launch whose gate is 0 when its turn comes does nothing
  struct Op* next;
  struct Graph* body;  // an IF's nodes
} Op;

typedef struct {
  Op *first, **last;
  int capturing, context;
} Stream;

// How many records were requested, how many have run, and when the last one ran.
typedef struct { uint32_t recorded, passed; int tick; Stream* stream; } Event;
typedef struct { char name[64]; } Function;
typedef struct { int loaded; Function functions[16]; int count; } Module;
// The device's clock in milliseconds: the number of ops that have run.
static int clock_ticks;

static int context_handle, other_context;
static Stream null_stream = {0, 0, 0, 1};

static void push(Stream* s, Op op) {
  if (!s->last) s->last = &s->first;
  Op* copy = malloc(sizeof *copy);
  *copy = op;
  copy->next = 0;
  *s->last = copy;
  s->last = &copy->next;
}

static void release(void* address) {
  size_t bytes = ((size_t*)address)[-32];
  used -= bytes;
  cached += bytes;
  live[MEMORY]--;
  memset(address, 0xEE, bytes);
  free((char*)address - 256);
}

static int step(Stream* s);

static Condition* condition(void* handle) {
  if (((Condition*)handle)->dead) sticky = ILLEGAL_ADDRESS;
  return handle;
}

static void set_conditions(const Conditions* p) {
  for (uint32_t i = 0; i < p->count; ++i) condition((void*)p->handles[i])->value = *p->gates[i] != 0;
}

static void run(const Op* op) {
  if (sticky != OK && op->kind <= TRAP) return;
  ++clock_ticks;
  counts[KERNELS_RUN] += op->kind == FILL || op->kind == TRAP || op->kind == SET_CONDITIONS;
  if (op->gate && *op->gate == 0) return;
  switch (op->kind) {
    case COPY: memcpy(op->dst, op->src, op->bytes); break;
    case FILL: for (size_t i = 0; i < op->bytes / 4; ++i) ((uint32_t*)op->dst)[i] = op->value; break;
    case TRAP: sticky = ILLEGAL_ADDRESS; break;
    case RECORD: ((Event*)op->dst)->passed = op->value; ((Event*)op->dst)->tick = clock_ticks; break;
    case FREE: release(op->dst); break;
    case WAIT: while (((Event*)op->dst)->passed < op->value && step(((Event*)op->dst)->stream)) {} break;
    case SET_CONDITIONS: set_conditions(op->src); break;
    case RESET: condition(op->dst)->value = condition(op->dst)->initial; break;
    case SET_BYTES: memset(op->dst, (int)op->value, op->bytes); break;
  }
}

static void pop(Stream* s) {
  Op* op = s->first;
  s->first = op->next;
  if (!s->first) s->last = &s->first;
  free(op);
}

// Runs the stream's next op; 0 if there is none.
static int step(Stream* s) {
  if (!s->first) return 0;
  const Op op = *s->first;
  pop(s);
  run(&op);
  if (op.kind == IF && !condition(op.dst)->value)
    for (uint32_t i = 0; i < op.value; ++i) pop(s);
  return 1;
}

static void flush(Stream* s) {
  while (step(s)) {}
}

static Stream* stream(void* handle) { return handle ? handle : &null_stream; }

R cuInit(unsigned flags) { (void)flags; return setting("MOCK_INIT", OK); }
R cuDriverGetVersion(int* v) { *v = setting("MOCK_VERSION", 13000); return OK; }
R cuDeviceGetCount(int* n) { ENTER; *n = setting("MOCK_DEVICES", 1); return OK; }
R cuDeviceGet(int* d, int i) { ENTER; *d = i; return i < setting("MOCK_DEVICES", 1) ? OK : INVALID_DEVICE; }
R cuDeviceGetName(char* name, int n, int d) { ENTER; snprintf(name, n, "Mock %d", d); return OK; }
R cuDeviceTotalMem_v2(size_t* b, int d) { (void)d; ENTER; *b = limit; return OK; }
R cuDeviceGetAttribute(int* v, int which, int d) {
  (void)d;
  ENTER;
  switch (which) {
    case 75: *v = setting("MOCK_CAPABILITY", 90) / 10; break;
    case 76: *v = setting("MOCK_CAPABILITY", 90) % 10; break;
    case 97: *v = 227 << 10; break;                       // shared memory of a block, opted in
    case 115: *v = setting("MOCK_POOLS", 1); break;       // memory pools
    default: *v = 0;
  }
  return OK;
}
R cuDevicePrimaryCtxRetain(void** c, int d) { (void)d; ENTER; *c = &context_handle; live[CONTEXTS]++; return OK; }
R cuDevicePrimaryCtxRelease_v2(int d) { (void)d; live[CONTEXTS]--; return sticky; }
static __thread void* current;
R cuCtxGetCurrent(void** c) { ENTER; *c = current; return OK; }
R cuCtxSetCurrent(void* c) { ENTER; current = c; return OK; }
R cuDeviceGetMemPool(void** p, int d) { (void)d; ENTER; *p = &used; return OK; }
R cuMemPoolTrimTo(void* p, size_t keep) { (void)p; (void)keep; ENTER; cached = 0; return OK; }
R cuMemGetInfo_v2(size_t* f, size_t* t) { ENTER; *f = limit - used; *t = limit; return OK; }

static R allocate(uintptr_t* p, size_t bytes) {
  if (!bytes) return INVALID;
  if (used + cached + bytes > limit) return NO_MEMORY;
  char* block = aligned_alloc(256, (bytes + 511) / 256 * 256);
  memset(block, 0xCD, (bytes + 511) / 256 * 256);
  *(size_t*)block = bytes;
  *p = (uintptr_t)block + 256;
  used += bytes;
  live[MEMORY]++;
  counts[ALLOCATIONS]++;
  return OK;
}
R cuMemAlloc_v2(uintptr_t* p, size_t bytes) { ENTER; return allocate(p, bytes); }
R cuMemAllocAsync(uintptr_t* p, size_t bytes, void* s) { (void)s; ENTER; return allocate(p, bytes); }
R cuMemFree_v2(uintptr_t p) { ENTER; release((void*)p); return OK; }
R cuMemFreeAsync(uintptr_t p, void* s) { ENTER; push(stream(s), (Op){.kind = FREE, .dst = (void*)p}); return OK; }
R cuMemHostAlloc(void** p, size_t bytes, unsigned f) {
  (void)f;
  ENTER;
  *p = malloc(bytes);
  live[PINNED]++;
  counts[PINNED_ALLOCATIONS]++;
  return OK;
}
R cuMemFreeHost(void* p) { ENTER; memset(p, 0xEE, 16); free(p); live[PINNED]--; return OK; }
R cuMemcpyHtoDAsync_v2(uintptr_t d, const void* s, size_t n, void* q) {
  ENTER;
  push(stream(q), (Op){.kind = COPY, .dst = (void*)d, .src = (void*)s, .bytes = n});
  return OK;
}
R cuMemcpyDtoHAsync_v2(void* d, uintptr_t s, size_t n, void* q) {
  ENTER;
  push(stream(q), (Op){.kind = COPY, .dst = d, .src = (void*)s, .bytes = n});
  return OK;
}
R cuMemsetD8Async(uintptr_t d, unsigned char v, size_t n, void* q) {
  ENTER;
  push(stream(q), (Op){.kind = SET_BYTES, .dst = (void*)d, .bytes = n, .value = v});
  return OK;
}

R cuModuleLoadData(void** m, const void* image) {
  ENTER;
  if ((uintptr_t)image % 8 || memcmp(image, "mockmock", 8)) return INVALID_IMAGE;
  *m = calloc(1, sizeof(Module));
  live[MODULES]++;
  return OK;
}
R cuModuleUnload(void* m) { ENTER; free(m); live[MODULES]--; return OK; }
R cuModuleGetFunction(void** f, void* m, const char* name) {
  ENTER;
  if (strncmp(name, "mock_", 5) && strcmp(name, "gate_conditions_f32")) return NOT_FOUND;
  Module* module = m;
  Function* function = &module->functions[module->count++ % 16];
  snprintf(function->name, sizeof function->name, "%s", name);
  *f = function;
  return OK;
}
R cuFuncGetAttribute(int* v, int which, void* f) { (void)f; ENTER; *v = which == 0 ? 1024 : 0; return OK; }
R cuFuncSetAttribute(void* f, int which, int v) { (void)f; ENTER; if (which == 8) live[SHARED_BYTES] = v; return OK; }

typedef struct { uintptr_t y; uint64_t count; uint32_t value, unused; } Params;

typedef struct { const Function* function; unsigned grid[3], block[3], shared; void **params, **extra; } Launch;

// Makes the op of a launch.
static R launch(Op* op, const Launch* l) {
  const unsigned *grid = l->grid, *block = l->block;
  if (!grid[0] || !grid[1] || !grid[2] || block[0] > 1024 || block[1] != 1 || block[2] != 1) return INVALID;
  if (l->extra) return INVALID;
  if (l->shared > 48 << 10 && live[SHARED_BYTES] < (long)l->shared) return INVALID;
  *op = (Op){0};
  memcpy(&op->gate, l->params[1], sizeof op->gate);
  const char* name = l->function->name;
  if (!strcmp(name, "gate_conditions_f32")) {
    op->kind = SET_CONDITIONS;
    op->src = memcpy(malloc(sizeof(Conditions)), l->params[0], sizeof(Conditions));
    op->value = ((Conditions*)op->src)->count;
    return op->value <= MOST && block[0] == MOST ? OK : INVALID;
  }
  Params p;
  memcpy(&p, l->params[0], sizeof p);
  op->kind = !strcmp(name, "mock_trap") ? TRAP : !strcmp(name, "mock_shift") ? COPY : FILL;
  op->dst = (void*)p.y;
  op->bytes = p.count * 4;
  op->src = (char*)op->dst + op->bytes;
  op->value = p.value;
  return OK;
}
R cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                 unsigned shared, void* s, void** params, void** extra) {
  ENTER;
  const Launch l = {f, {gx, gy, gz}, {bx, by, bz}, shared, params, extra};
  Op op;
  R result = launch(&op, &l);
  if (result != OK) return result;
  counts[KERNEL_LAUNCHES]++;
  push(stream(s), op);
  return OK;
}

R cuStreamCreate(void** s, unsigned f) {
  (void)f;
  ENTER;
  Stream* n = calloc(1, sizeof *n);
  n->context = 1;
  *s = n;
  live[STREAMS]++;
  return OK;
}
R cuStreamDestroy_v2(void* s) { flush(s); free(s); live[STREAMS]--; return sticky; }
R cuStreamSynchronize(void* s) {
  ENTER;
  if (stream(s)->capturing) return WRONG_CAPTURE;
  flush(stream(s));
  return sticky;
}
R cuStreamGetCtx(void* s, void** c) { ENTER; *c = stream(s)->context ? &context_handle : &other_context; return OK; }
R cuStreamBeginCapture_v2(void* s, int mode) {
  (void)mode;
  ENTER;
  if (!s) return WRONG_CAPTURE;
  flush(s);
  ((Stream*)s)->capturing = 1;
  return OK;
}

#include "graphs.h"

R cuEventCreate(void** e, unsigned f) { (void)f; ENTER; *e = calloc(1, sizeof(Event)); live[EVENTS]++; return OK; }
// Not freed: pending work may still use it.
R cuEventDestroy_v2(void* e) { (void)e; live[EVENTS]--; return sticky; }
R cuEventRecord(void* e, void* s) {
  ENTER;
  Event* event = e;
  event->stream = stream(s);
  push(stream(s), (Op){.kind = RECORD, .dst = e, .value = ++event->recorded});
  return OK;
}
R cuStreamWaitEvent(void* s, void* e, unsigned f) {
  (void)f;
  ENTER;
  push(stream(s), (Op){.kind = WAIT, .dst = e, .value = ((Event*)e)->recorded});
  return OK;
}
static int pending(const Event* e) { return e->passed < e->recorded; }
R cuEventQuery(void* e) { ENTER; return pending(e) ? NOT_READY : OK; }
R cuEventSynchronize(void* e) { ENTER; if (pending(e)) flush(((Event*)e)->stream); return sticky; }
R cuEventElapsedTime(float* ms, void* a, void* b) {
  ENTER;
  Event *start = a, *end = b;
  if (!start->stream || !end->stream) return INVALID;
  if (pending(start) || pending(end)) return NOT_READY;
  *ms = end->tick - start->tick;
  return OK;
}

// MOCK_TEXTS makes a query of an error's text fail with its value: a stub returns 34 and leaves the pointer alone, a
// driver returns 1 and a null pointer for an error it does not know.
R cuGetErrorName(R e, const char** t) {
  int result = setting("MOCK_TEXTS", OK);
  if (!getenv("MOCK_TEXTS"))
    *t = e == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
         : e == NO_MEMORY     ? "CUDA_ERROR_OUT_OF_MEMORY"
                              : "CUDA_ERROR_MOCK";
  else if (result != 34) *t = NULL;
  return result;
}
#ifndef MOCK_OLD
R cuGetErrorString(R e, const char** t) {
  if (getenv("MOCK_TEXTS")) return cuGetErrorName(e, t);
  *t = "as the mock driver was told";
  return OK;
}
#endif

// For tests.
void mock_fail_at(long call) { fail_at = call; calls = 0; }
long mock_calls(void) { return calls; }
long mock_live(int what) { return live[what]; }
long mock_count(int what) { return counts[what]; }
const char* mock_shape(void) { return shape; }
void mock_limit(size_t bytes) { limit = bytes; }
int mock_idle(void* s) { return !stream(s)->first; }
void* mock_stream(int context) { Stream* n = calloc(1, sizeof *n); n->context = context; return n; }
