// A fake CUDA runtime whose streams are threads: copies, events and waits are real and happen late, kernels do nothing.
// The process's own memory is device memory. Made for PyTorch's wheels for CUDA 13. As in CUDA, a call that needs a context
// creates it on the current device. stand_in.py adds the other symbols; those of the runtime return an error.
//
// With STAND_IN_PACED=1 in the environment, copies take the time of a GPU's instead of a random one, and copy nothing: this
// machine's processors would take longer. Then nothing but a clock runs the streams, so they need no processor. Values are wrong
// then, and only the order and the times of copies mean something.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef DEVICES
#define DEVICES 2
#endif
#ifndef LATE_MICROSECONDS
#define LATE_MICROSECONDS 300
#endif
enum { OK = 0, NO_MEMORY = 2, NO_DEVICE = 101, NOT_READY = 600, REGISTERED = 712, NOT_REGISTERED = 713 };

typedef struct { unsigned x, y, z; } dim3;

// What a GPU on PCI Express 5 takes (measured on an H100): copies of pinned and of other memory, in bytes per microsecond; to
// begin a copy; and to pin memory, in nanoseconds per KiB.
enum { PINNED_RATE = 50000, PAGEABLE_RATE = 11000, COPY_MICROSECONDS = 8, PIN_NANOSECONDS = 340 };
static int paced;
__attribute__((constructor)) static void read_environment(void) {
    const char *value = getenv("STAND_IN_PACED");
    paced = value && *value == '1';
}

static __thread int current, last_error;
static int contexts[DEVICES];

static int fail(int code) { return last_error = code; }
static void need_context(void) { contexts[current] = 1; }

// Streams and events. One lock for all of them.

typedef struct event { long recorded, reached; double at; } event;
typedef struct work {
    struct work *next;
    enum { COPY, SET, RECORD, WAIT } what;
    void *to;
    const void *from;
    size_t size;
    int value;
    event *event;
    long point;
} work;
typedef struct stream { work *first, **last; int busy; double free_at; pthread_t thread; struct stream *next; } stream;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static stream *streams, *defaults[DEVICES];

static struct { char *start; size_t size; } registered[1 << 16];

static int is_pinned(const work *w) {
    // Called with the lock.
    for (int i = 0; i < 1 << 16 && registered[i].start; i++) {
        const char *start = registered[i].start, *end = start + registered[i].size;
        if ((start <= (char *)w->to && (char *)w->to < end) || (start <= (char *)w->from && (char *)w->from < end)) return 1;
    }
    return 0;
}
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6 * t.tv_sec + 1e-3 * t.tv_nsec;
}
static void rest(double microseconds) {
    if (microseconds > 0) nanosleep(&(struct timespec){microseconds / 1e6, 1000 * (long)microseconds % 1000000000}, 0);
}
static void rest_until(double at) { rest(at - now()); }

static void *run(void *argument) {
    stream *s = argument;
    unsigned seed = (unsigned)(size_t)s;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!s->first) pthread_cond_wait(&changed, &lock);
        work *w = s->first;
        s->busy = 1;
        while (w->what == WAIT && w->event->reached < w->point) pthread_cond_wait(&changed, &lock);
        pthread_mutex_unlock(&lock);
        rest(rand_r(&seed) % (LATE_MICROSECONDS + 1));
        if (w->what == COPY) memcpy(w->to, w->from, w->size);
        if (w->what == SET) memset(w->to, w->value, w->size);
        pthread_mutex_lock(&lock);
        if (w->what == RECORD && w->event->reached < w->point) w->event->reached = w->point;
        if (!(s->first = w->next)) s->last = &s->first;
        free(w);
        s->busy = 0;
        pthread_cond_broadcast(&changed);
    }
    return 0;
}
static stream *make(void) {
    stream *s = calloc(1, sizeof *s);
    s->last = &s->first;
    s->next = streams;
    streams = s;
    if (!paced) pthread_create(&s->thread, 0, run, s);
    return s;
}
static stream *of(stream *s) {
    // Called with the lock. 0 to 2 are the default streams.
    if ((size_t)s > 2) return s;
    if (!defaults[current]) defaults[current] = make();
    return defaults[current];
}
static void pace(stream *s, const work *w) {
    // Called with the lock. Notes when the work will be done.
    double begin = now();
    if (s->free_at > begin) begin = s->free_at;
    if (w->what == WAIT && w->event->at > begin) begin = w->event->at;
    if (w->what == COPY) begin += COPY_MICROSECONDS + w->size / (double)(is_pinned(w) ? PINNED_RATE : PAGEABLE_RATE);
    s->free_at = begin;
    if (w->what == RECORD) w->event->at = begin;
}
static int queue(stream *s, work w) {
    need_context();
    pthread_mutex_lock(&lock);
    s = of(s);
    if (paced) {
        pace(s, &w);
        pthread_mutex_unlock(&lock);
        return OK;
    }
    if (w.what == RECORD) w.point = ++w.event->recorded;
    if (w.what == WAIT) w.point = w.event->recorded;
    work *copy = malloc(sizeof w);
    *copy = w, copy->next = 0;
    *s->last = copy, s->last = &copy->next;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return OK;
}
int cudaStreamCreateWithPriority(stream **s, unsigned flags, int priority) {
    need_context();
    pthread_mutex_lock(&lock);
    *s = make();
    pthread_mutex_unlock(&lock);
    return OK;
}
int cudaStreamCreateWithFlags(stream **s, unsigned flags) { return cudaStreamCreateWithPriority(s, flags, 0); }
int cudaStreamCreate(stream **s) { return cudaStreamCreateWithPriority(s, 0, 0); }
int cudaStreamDestroy(stream *s) { return OK; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0, *greatest = -1; return OK; }
int cudaStreamGetPriority(stream *s, int *priority) { *priority = 0; return OK; }
int cudaStreamIsCapturing(stream *s, int *status) { *status = 0; return OK; }
int cudaStreamGetCaptureInfo(stream *s, int *status) { *status = 0; return OK; }
int cudaThreadExchangeStreamCaptureMode(int *mode) { return OK; }
int cudaStreamSynchronize(stream *s) {
    pthread_mutex_lock(&lock);
    s = of(s);
    double at = s->free_at;
    while (s->first || s->busy) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    if (paced) rest_until(at);
    return OK;
}
int cudaStreamQuery(stream *s) {
    pthread_mutex_lock(&lock);
    s = of(s);
    int busy = s->first || s->busy || (paced && s->free_at > now());
    pthread_mutex_unlock(&lock);
    return busy ? NOT_READY : OK;
}
int cudaDeviceSynchronize(void) {
    need_context();
    pthread_mutex_lock(&lock);
    double at = 0;
    for (stream *s = streams; s; s = s->next)
        if (s->free_at > at) at = s->free_at;
    for (stream *s = streams; s;) {
        if (!s->first && !s->busy) s = s->next;
        else pthread_cond_wait(&changed, &lock), s = streams;
    }
    pthread_mutex_unlock(&lock);
    if (paced) rest_until(at);
    return OK;
}
int cudaStreamWaitEvent(stream *s, event *e, unsigned flags) { return queue(s, (work){.what = WAIT, .event = e}); }
int cudaEventCreateWithFlags(event **e, unsigned flags) {
    need_context();
    *e = calloc(1, sizeof **e);
    return OK;
}
int cudaEventCreate(event **e) { return cudaEventCreateWithFlags(e, 0); }
int cudaEventDestroy(event *e) { return OK; }  // A stream may still use it.
int cudaEventRecord(event *e, stream *s) { return queue(s, (work){.what = RECORD, .event = e}); }
int cudaEventRecordWithFlags(event *e, stream *s, unsigned flags) { return cudaEventRecord(e, s); }
int cudaEventQuery(event *e) {
    pthread_mutex_lock(&lock);
    int ready = paced ? e->at <= now() : e->reached >= e->recorded;
    pthread_mutex_unlock(&lock);
    return ready ? OK : NOT_READY;
}
int cudaEventSynchronize(event *e) {
    pthread_mutex_lock(&lock);
    long point = e->recorded;
    double at = e->at;
    while (e->reached < point) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    if (paced) rest_until(at);
    return OK;
}
int cudaEventElapsedTime(float *milliseconds, event *start, event *end) { *milliseconds = 0; return OK; }

// Devices

int cudaGetDeviceCount(int *count) { *count = DEVICES; return OK; }
int cudaGetDevice(int *device) { *device = current; return OK; }
int cudaSetDevice(int device) {
    if (device < 0 || device >= DEVICES) return fail(NO_DEVICE);
    current = device;
    need_context();
    return OK;
}
int cudaDriverGetVersion(int *version) { *version = 13000; return OK; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return OK; }
int cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return OK; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) { *value = 1; return OK; }
int cudaGetDeviceProperties(char *properties, int device) {
    // The total memory is at offset 288, then come the threads of a warp and the version of the device.
    memset(properties, 0, 512);
    snprintf(properties, 256, "stand-in %d", device);
    *(size_t *)(properties + 288) = (size_t)16 << 30;
    *(int *)(properties + 308) = 32;
    *(int *)(properties + 320) = 1024;
    *(int *)(properties + 360) = 9;
    *(int *)(properties + 384) = 16;
    return OK;
}

// Memory

static int allocate(void **memory, size_t size) {
    need_context();
    return posix_memalign(memory, 4096, size ? size : 1) ? fail(NO_MEMORY) : OK;
}
int cudaMalloc(void **memory, size_t size) { return allocate(memory, size); }
int cudaHostAlloc(void **memory, size_t size, unsigned flags) { return allocate(memory, size); }
int cudaFree(void *memory) { cudaDeviceSynchronize(); free(memory); return OK; }
int cudaFreeHost(void *memory) { return cudaFree(memory); }
int cudaMemGetInfo(size_t *available, size_t *total) {
    need_context();
    *available = *total = (size_t)16 << 30;
    return OK;
}
int cudaHostRegister(char *start, size_t size, unsigned flags) {
    int code = NO_MEMORY;
    need_context();
    if (paced) rest(PIN_NANOSECONDS * (size >> 10) / 1000);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 1 << 16; i++) {
        if (registered[i].size && start < registered[i].start + registered[i].size
            && registered[i].start < start + size) {
            code = REGISTERED;
            break;
        }
        if (!registered[i].start) {
            registered[i].start = start, registered[i].size = size;
            code = OK;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    return code ? fail(code) : OK;
}
int cudaHostUnregister(char *start) {
    int code = NOT_REGISTERED;
    need_context();
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 1 << 16 && registered[i].start; i++)
        if (registered[i].start == start && registered[i].size) registered[i].size = code = OK;
    pthread_mutex_unlock(&lock);
    return code ? fail(code) : OK;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, stream *s) {
    return queue(s, (work){.what = COPY, .to = to, .from = from, .size = size});
}
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    cudaMemcpyAsync(to, from, size, kind, 0);
    return cudaStreamSynchronize(0);
}
int cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t size, stream *s) {
    return cudaMemcpyAsync(to, from, size, 0, s);
}
int cudaMemsetAsync(void *memory, int value, size_t size, stream *s) {
    return queue(s, (work){.what = SET, .to = memory, .value = value, .size = size});
}

// Kernels

void **__cudaRegisterFatBinary(void *binary) { return calloc(1, 8); }
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) { free(handle); }
char __cudaInitModule(void **handle) { return 0; }
void __cudaRegisterVar(void) {}
void __cudaRegisterFunction(void) {}
int __cudaPushCallConfiguration(void) { return OK; }
int __cudaPopCallConfiguration(void) { return OK; }
int __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return OK; }
int __cudaLaunchKernel(void) { need_context(); return OK; }
int cudaLaunchKernel(void) { need_context(); return OK; }
int cudaLaunchKernelExC(void) { need_context(); return OK; }

// Errors

int cudaGetLastError(void) { int code = last_error; last_error = OK; return code; }
int cudaPeekAtLastError(void) { return last_error; }
const char *cudaGetErrorString(int code) {
    return code == OK ? "no error" : code == NO_MEMORY ? "out of memory" : code == NO_DEVICE ? "invalid device ordinal"
         : code == REGISTERED ? "part or all of the requested memory range is already mapped"
         : code == NOT_REGISTERED ? "pointer does not correspond to a registered memory region" : "not in the stand-in";
}
const char *cudaGetErrorName(int code) { return cudaGetErrorString(code); }

// Driver functions: whether the process has a context on a device. PyTorch asks for others, and does not call them here.

int cuInit(unsigned flags) { return OK; }
int cuDeviceGet(int *device, int number) { *device = number; return number < DEVICES ? OK : NO_DEVICE; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0, *active = contexts[device];
    return OK;
}
static int nothing(void) { return OK; }
int cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version, long long flags, int *status) {
    *function = dlsym(RTLD_DEFAULT, symbol);
    if (!*function && !strcmp(symbol, "cuDevicePrimaryCtxGetState")) *function = (void *)cuDevicePrimaryCtxGetState;
    if (!*function) *function = (void *)nothing;
    if (status) *status = 0;
    return OK;
}
