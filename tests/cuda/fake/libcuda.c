// A driver without a device, for tests of src/kernels/cuda/driver: it counts what is alive, notices misuse, remembers the last
// launch, and fails where it is told to. Kernels do nothing here.
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXT, MODULE, STREAM, EVENT, GRAPH, EXECUTABLE, ALLOCATION, KINDS };
enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500 };
enum { NOT_READY = 600, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };

typedef struct Object { int kind, flag; struct Object *in; uint64_t value; } Object;
typedef struct { uint32_t grid[3], block[3], shared, count; void *stream; uint8_t arguments[64]; } Launch;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int live[KINDS], misuse, fail_after, fail_code, calls;
static char fail_name[64], counted[64];
static int capability = 80, pools = 1, device_count = 2;
static Launch last;
static Object *primary;
static int retained;
static _Thread_local Object *stack[16];
static _Thread_local int depth;
static _Thread_local Object *capturing;
static Object *recording;  // the stream that any thread captures, the last if there are several

// --- what tests ask and set ------------------------------------------------------------------------------------------------

int fake_live(int kind) { return live[kind]; }
int fake_misuse(void) { return misuse; }
int fake_depth(void) { return depth; }
Launch fake_last(void) { return last; }
void fake_device(int major_minor, int with_pools, int count) {
    capability = major_minor, pools = with_pools, device_count = count;
}
// The nth call of a function from now on gives this code.
void fake_fail(const char *name, int nth, int code) { strcpy(fail_name, name), fail_after = nth, fail_code = code; }
// Counts the calls of one function from now on.
void fake_count(const char *name) { strcpy(counted, name), calls = 0; }
int fake_calls(void) { return calls; }

// --- objects ---------------------------------------------------------------------------------------------------------------

static int entered(const char *name) {
    pthread_mutex_lock(&lock);
    int code = 0;
    if (!strcmp(name, counted)) calls++;
    if (fail_after && !strcmp(name, fail_name) && --fail_after == 0) code = fail_code;
    pthread_mutex_unlock(&lock);
    return code;
}
#define ENTER() do { int code_ = entered(__func__); if (code_) return code_; } while (0)
// Most functions want a context to be current.
#define ENTER_CONTEXT() do { ENTER(); if (!depth) return INVALID_CONTEXT; } while (0)
#define REQUIRE(condition) do { if (!(condition)) { __sync_fetch_and_add(&misuse, 1); return INVALID_VALUE; } } while (0)

static Object *make(int kind, Object *in) {
    Object *object = calloc(1, sizeof(Object));
    object->kind = kind, object->in = in;
    __sync_fetch_and_add(&live[kind], 1);
    return object;
}
static int destroy(Object *object, int kind) {
    REQUIRE(object && object->kind == kind);
    REQUIRE(kind == CONTEXT || object->in == stack[depth - 1]);
    // Never given back to the allocator, so that a second destruction is seen.
    object->kind = -1;
    __sync_fetch_and_sub(&live[kind], 1);
    return 0;
}
static int is(Object *object, int kind) { return object && object->kind == kind && object->in == stack[depth - 1]; }
static int is_stream(Object *stream) { return !stream || is(stream, STREAM); }
// Work that waits cannot be in a graph, and spoils one that this thread records.
static int waits(void) {
    if (!capturing) return 0;
    capturing->flag = 2;
    return CAPTURE_UNSUPPORTED;
}

// So does waiting for a whole context, in whichever thread.
static int waits_for_all(void) {
    Object *spoilt = __atomic_load_n(&recording, __ATOMIC_SEQ_CST);
    if (!spoilt) return waits();
    spoilt->flag = 2;
    return CAPTURE_UNSUPPORTED;
}

// --- device and context ----------------------------------------------------------------------------------------------------

int cuInit(unsigned flags) { ENTER(); REQUIRE(flags == 0); return device_count ? 0 : NO_DEVICE; }
int cuDriverGetVersion(int *version) { ENTER(); *version = 12080; return 0; }
int cuGetErrorName(int code, const char **name) {
    *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? 0 : INVALID_VALUE;
}
int cuGetErrorString(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : code == 700 ? "an illegal memory access was encountered" : NULL;
    return *text ? 0 : INVALID_VALUE;
}
int cuDeviceGetCount(int *count) { ENTER(); *count = device_count; return 0; }
int cuDeviceGet(int *device, int ordinal) { ENTER(); *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int bytes, int device) {
    ENTER();
    (void)device;
    strncpy(name, "Fake GPU", (size_t)bytes);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER();
    (void)device;
    switch (attribute) {
        case 16: *value = 108; return 0;
        case 38: *value = 40 << 20; return 0;
        case 75: *value = capability / 10; return 0;
        case 76: *value = capability % 10; return 0;
        case 97: *value = 163 * 1024; return 0;
        case 115: *value = pools; return 0;
        default: return INVALID_VALUE;
    }
}
int cuDevicePrimaryCtxRetain(Object **context, int device) {
    ENTER();
    (void)device;
    if (!retained++) primary = make(CONTEXT, NULL);
    *context = primary;
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER();
    (void)device;
    REQUIRE(retained > 0);
    // What still lives in a context when it goes is a leak.
    for (int kind = MODULE; retained == 1 && kind < KINDS; kind++) REQUIRE(live[kind] == 0);
    return --retained ? 0 : destroy(primary, CONTEXT);
}
int cuCtxGetCurrent(Object **context) { ENTER(); *context = depth ? stack[depth - 1] : NULL; return 0; }
int cuCtxPushCurrent_v2(Object *context) {
    ENTER();
    REQUIRE(context && context->kind == CONTEXT && depth < 16);
    stack[depth++] = context;
    return 0;
}
int cuCtxPopCurrent_v2(Object **context) { ENTER(); REQUIRE(depth > 0); *context = stack[--depth]; return 0; }
int cuCtxCreate_v2(Object **context, unsigned flags, int device) {
    ENTER();
    (void)flags, (void)device;
    *context = stack[depth++] = make(CONTEXT, NULL);
    return 0;
}
int cuCtxDestroy_v2(Object *context) { ENTER(); return destroy(context, CONTEXT); }
int cuCtxGetDevice(int *device) { ENTER_CONTEXT(); *device = 0; return 0; }
int cuCtxSynchronize(void) { ENTER_CONTEXT(); return waits_for_all(); }

// --- kernels ---------------------------------------------------------------------------------------------------------------

// An image is ELF's magic and then the source that it was made from; the fake libnvrtc.c makes those.
int cuModuleLoadData(Object **module, const char *image) {
    ENTER_CONTEXT();
    if (memcmp(image, "\x7f" "ELF", 4)) return INVALID_IMAGE;
    *module = make(MODULE, stack[depth - 1]);
    (*module)->value = (uintptr_t)strdup(image);
    return 0;
}
int cuModuleUnload(Object *module) { ENTER_CONTEXT(); return destroy(module, MODULE); }
int cuModuleGetFunction(Object **function, Object *module, const char *name) {
    ENTER_CONTEXT();
    REQUIRE(is(module, MODULE));
    if (!strstr((const char *)(uintptr_t)module->value, name)) return NOT_FOUND;
    *function = calloc(1, sizeof(Object));
    (*function)->in = module;
    return 0;
}
int cuFuncGetAttribute(int *value, int attribute, Object *function) {
    ENTER_CONTEXT();
    REQUIRE(is(function->in, MODULE));
    *value = attribute == 0 ? 512 : 0;
    return attribute <= 1 ? 0 : INVALID_VALUE;
}
int cuFuncSetAttribute(Object *function, int attribute, int value) {
    ENTER_CONTEXT();
    REQUIRE(is(function->in, MODULE) && attribute == 8 && value <= 163 * 1024);
    function->value = (uint64_t)value;
    return 0;
}
int cuLaunchKernel(Object *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Object *stream, void **arguments, void **extra) {
    ENTER_CONTEXT();
    REQUIRE(is(function->in, MODULE) && is_stream(stream) && x && y && z && bx && !extra);
    REQUIRE(shared <= function->value && bx * by * bz <= 512);
    pthread_mutex_lock(&lock);
    Launch launch = {{x, y, z}, {bx, by, bz}, shared, last.count + 1, stream, {0}};
    memcpy(launch.arguments, arguments[0], sizeof launch.arguments);
    last = launch;
    pthread_mutex_unlock(&lock);
    return 0;
}

// --- memory: the host's -----------------------------------------------------------------------------------------------------

int cuMemGetInfo_v2(size_t *free, size_t *total) { ENTER_CONTEXT(); *free = 3ull << 30, *total = 4ull << 30; return 0; }
static int allocate(uint64_t *address, size_t bytes) {
    if (bytes > 1u << 30) return OUT_OF_MEMORY;
    *address = (uintptr_t)aligned_alloc(256, (bytes + 255) / 256 * 256);
    __sync_fetch_and_add(&live[ALLOCATION], 1);
    return 0;
}
static int release(uint64_t address) {
    REQUIRE(address && live[ALLOCATION] > 0);
    free((void *)(uintptr_t)address);
    __sync_fetch_and_sub(&live[ALLOCATION], 1);
    return 0;
}
int cuMemAlloc_v2(uint64_t *address, size_t bytes) { ENTER_CONTEXT(); return waits() ?: allocate(address, bytes); }
int cuMemFree_v2(uint64_t address) { ENTER_CONTEXT(); return waits() ?: release(address); }
int cuMemAllocAsync(uint64_t *address, size_t bytes, Object *stream) {
    ENTER_CONTEXT();
    REQUIRE(pools && is(stream, STREAM));
    return allocate(address, bytes);
}
int cuMemFreeAsync(uint64_t address, Object *stream) {
    ENTER_CONTEXT();
    REQUIRE(pools && is(stream, STREAM));
    return release(address);
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    ENTER_CONTEXT();
    memcpy((void *)(uintptr_t)to, from, bytes);
    return 0;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    ENTER_CONTEXT();
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return 0;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Object *stream) {
    ENTER_CONTEXT();
    REQUIRE(is_stream(stream));
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes);
    return 0;
}
int cuMemsetD8Async(uint64_t to, unsigned char byte, size_t bytes, Object *stream) {
    ENTER_CONTEXT();
    REQUIRE(is_stream(stream));
    memset((void *)(uintptr_t)to, byte, bytes);
    return 0;
}

// --- streams, events, graphs -------------------------------------------------------------------------------------------------

int cuStreamCreate(Object **stream, unsigned flags) {
    ENTER_CONTEXT();
    REQUIRE(flags == 1);
    *stream = make(STREAM, stack[depth - 1]);
    return 0;
}
int cuStreamDestroy_v2(Object *stream) { ENTER_CONTEXT(); return destroy(stream, STREAM); }
int cuStreamSynchronize(Object *stream) {
    ENTER_CONTEXT();
    REQUIRE(is_stream(stream));
    return waits();
}
int cuStreamBeginCapture_v2(Object *stream, int mode) {
    ENTER_CONTEXT();
    REQUIRE(is(stream, STREAM) && mode == 1 && !capturing);
    stream->flag = 1, stream->value = last.count, capturing = stream;
    __atomic_store_n(&recording, stream, __ATOMIC_SEQ_CST);
    return 0;
}
int cuStreamEndCapture(Object *stream, Object **graph) {
    REQUIRE(depth && is(stream, STREAM) && stream->flag && stream == capturing);
    int spoilt = stream->flag == 2;
    // It ends, whatever it says.
    stream->flag = 0, capturing = NULL, *graph = NULL;
    __atomic_store_n(&recording, NULL, __ATOMIC_SEQ_CST);
    ENTER();
    if (spoilt) return CAPTURE_INVALIDATED;
    *graph = make(GRAPH, stack[depth - 1]);
    (*graph)->value = last.count - stream->value;
    return 0;
}
int cuGraphInstantiateWithFlags(Object **executable, Object *graph, unsigned long long flags) {
    ENTER_CONTEXT();
    REQUIRE(is(graph, GRAPH) && flags == 0);
    *executable = make(EXECUTABLE, stack[depth - 1]);
    (*executable)->value = graph->value;
    return 0;
}
int cuGraphUpload(Object *executable, Object *stream) {
    ENTER_CONTEXT();
    REQUIRE(is(executable, EXECUTABLE) && is_stream(stream));
    return 0;
}
int cuGraphLaunch(Object *executable, Object *stream) {
    ENTER_CONTEXT();
    REQUIRE(is(executable, EXECUTABLE) && is_stream(stream));
    last.count += (uint32_t)executable->value;
    return 0;
}
int cuGraphDestroy(Object *graph) { ENTER_CONTEXT(); return destroy(graph, GRAPH); }
int cuGraphExecDestroy(Object *executable) { ENTER_CONTEXT(); return destroy(executable, EXECUTABLE); }
int cuEventCreate(Object **event, unsigned flags) {
    ENTER_CONTEXT();
    REQUIRE(flags == 0);
    *event = make(EVENT, stack[depth - 1]);
    return 0;
}
int cuEventDestroy_v2(Object *event) { ENTER_CONTEXT(); return destroy(event, EVENT); }
int cuEventRecord(Object *event, Object *stream) {
    ENTER_CONTEXT();
    REQUIRE(is(event, EVENT) && is_stream(stream));
    event->value = last.count + 1;
    return 0;
}
int cuEventSynchronize(Object *event) { ENTER_CONTEXT(); REQUIRE(is(event, EVENT)); return 0; }
#ifndef WITHOUT_EVENT_TIMES
int cuEventElapsedTime(float *milliseconds, Object *start, Object *end) {
    ENTER_CONTEXT();
    REQUIRE(is(start, EVENT) && is(end, EVENT));
    // A millisecond a launch.
    *milliseconds = (float)(end->value - start->value);
    return start->value && end->value ? 0 : NOT_READY;
}
#endif
