// A fake CUDA runtime that uses the process's own memory as device memory. Copies are real and synchronous; kernels do
// nothing. As in CUDA, a call that needs a context creates it on the current device, and so does cudaSetDevice.
// stand_in.py adds the other symbols that MXNet needs from the runtime; those return an error.

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef DEVICES
#define DEVICES 2
#endif
enum { OK = 0, NO_MEMORY = 2, NO_DEVICE = 101, REGISTERED = 712, NOT_REGISTERED = 713 };

typedef struct { unsigned x, y, z; } dim3;
typedef void *stream;

static __thread int current, last_error;
static int contexts[DEVICES];
static struct { char *start; size_t size; } registered[1 << 16];
static pthread_mutex_t registering = PTHREAD_MUTEX_INITIALIZER;

static int fail(int code) { return last_error = code; }
static void need_context(void) { contexts[current] = 1; }

// Devices

int cudaGetDeviceCount(int *count) { *count = DEVICES; return OK; }
int cudaGetDevice(int *device) { *device = current; return OK; }
int cudaSetDevice(int device) {
    if (device < 0 || device >= DEVICES) return fail(NO_DEVICE);
    current = device;
    need_context();
    return OK;
}
int cudaDeviceSynchronize(void) { need_context(); return OK; }
int cudaDriverGetVersion(int *version) { *version = 12000; return OK; }
int cudaRuntimeGetVersion(int *version) { *version = 11070; return OK; }
int cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return OK; }
int cudaDeviceGetP2PAttribute(int *value, int attribute, int device, int peer) { *value = 0; return OK; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    static const int values[] = {[1] = 1024, [2] = 1024, [3] = 1024, [4] = 64, [5] = 65535, [6] = 65535, [7] = 65535,
                                 [8] = 49152, [10] = 32, [16] = 64, [39] = 2048, [75] = 8};
    *value = attribute < (int)(sizeof values / sizeof *values) ? values[attribute] : 0;
    return OK;
}
int cudaGetDeviceProperties(char *properties, int device) {
    // CUDA 11's struct has 712 bytes, with the total memory at offset 288.
    memset(properties, 0, 712);
    snprintf(properties, 256, "stand-in %d", device);
    *(size_t *)(properties + 288) = (size_t)16 << 30;
    return OK;
}

// Memory

static int allocate(void **memory, size_t size) {
    need_context();
    return posix_memalign(memory, 4096, size ? size : 1) ? fail(NO_MEMORY) : OK;
}
int cudaMalloc(void **memory, size_t size) { return allocate(memory, size); }
int cudaHostAlloc(void **memory, size_t size, unsigned flags) { return allocate(memory, size); }
int cudaFree(void *memory) { free(memory); return OK; }
int cudaFreeHost(void *memory) { free(memory); return OK; }
int cudaMemGetInfo(size_t *available, size_t *total) {
    need_context();
    *available = *total = (size_t)16 << 30;
    return OK;
}
int cudaHostRegister(char *start, size_t size, unsigned flags) {
    int code = NO_MEMORY, i;
    need_context();
    pthread_mutex_lock(&registering);
    for (i = 0; i < 1 << 16; i++) {
        if (registered[i].size && start < registered[i].start + registered[i].size && registered[i].start < start + size) {
            code = REGISTERED;
            break;
        }
        if (!registered[i].start) {
            registered[i].start = start, registered[i].size = size;
            code = OK;
            break;
        }
    }
    pthread_mutex_unlock(&registering);
    return code ? fail(code) : OK;
}
int cudaHostUnregister(char *start) {
    int code = NOT_REGISTERED, i;
    need_context();
    pthread_mutex_lock(&registering);
    for (i = 0; i < 1 << 16 && registered[i].start; i++)
        if (registered[i].start == start && registered[i].size) registered[i].size = code = OK;
    pthread_mutex_unlock(&registering);
    return code ? fail(code) : OK;
}
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    need_context();
    memcpy(to, from, size);
    return OK;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, stream s) {
    return cudaMemcpy(to, from, size, kind);
}
int cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t size, stream s) {
    return cudaMemcpy(to, from, size, 0);
}
int cudaMemcpy2DAsync(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height,
                      int kind, stream s) {
    for (size_t row = 0; row < height; row++) cudaMemcpy(to + row * to_pitch, from + row * from_pitch, width, kind);
    return OK;
}
int cudaMemsetAsync(void *memory, int value, size_t size, stream s) {
    need_context();
    memset(memory, value, size);
    return OK;
}

// Streams and events: all work is complete when a call returns.

int cudaStreamCreate(void **s) { return allocate(s, 8); }
int cudaStreamCreateWithFlags(void **s, unsigned flags) { return allocate(s, 8); }
int cudaStreamDestroy(void *s) { free(s); return OK; }
int cudaStreamSynchronize(void *s) { return OK; }
int cudaStreamWaitEvent(void *s, void *event, unsigned flags) { return OK; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return allocate(event, 8); }
int cudaEventDestroy(void *event) { free(event); return OK; }
int cudaEventRecord(void *event, void *s) { return OK; }
int cudaEventQuery(void *event) { return OK; }

// Kernels

void **__cudaRegisterFatBinary(void *binary) { return calloc(1, 8); }
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) { free(handle); }
char __cudaInitModule(void **handle) { return 0; }
void __cudaRegisterVar(void) {}
void __cudaRegisterFunction(void) {}
static __thread struct { dim3 grid, block; size_t shared; stream s; } calls[16];
static __thread int depth;
int __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, stream s) {
    calls[depth].grid = grid, calls[depth].block = block, calls[depth].shared = shared, calls[depth++].s = s;
    return OK;
}
int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, stream *s) {
    *grid = calls[--depth].grid, *block = calls[depth].block, *shared = calls[depth].shared, *s = calls[depth].s;
    return OK;
}
int cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, stream s) {
    need_context();
    return OK;
}
int cudaFuncGetAttributes(int *attributes, const void *kernel) {
    // CUDA 11's struct has 56 bytes. The seventh int is the maximum number of threads per block.
    memset(attributes, 0, 56);
    attributes[6] = 1024;
    return OK;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 1; return OK; }

// Errors

int cudaGetLastError(void) { int code = last_error; last_error = OK; return code; }
int cudaPeekAtLastError(void) { return last_error; }
const char *cudaGetErrorString(int code) {
    return code == OK ? "no error" : code == NO_MEMORY ? "out of memory" : code == NO_DEVICE ? "invalid device ordinal"
         : code == REGISTERED ? "part or all of the requested memory range is already mapped"
         : code == NOT_REGISTERED ? "pointer does not correspond to a registered memory region" : "not in the stand-in";
}
const char *cudaGetErrorName(int code) { return cudaGetErrorString(code); }

// Driver functions: whether the process has a context on a device.

int cuDeviceGet(int *device, int number) { *device = number; return number < DEVICES ? OK : NO_DEVICE; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0, *active = contexts[device];
    return OK;
}
