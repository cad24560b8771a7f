/* A CUDA driver over host memory, as much of it as PyCUDA needs to carry arrays: for tests of our use of the real PyCUDA.
 *
 * Work on a stream waits until the stream is waited for. Every call that needs a current context fails without one (201,
 * CUDA_ERROR_INVALID_CONTEXT). Device memory is limited to 1 MiB, so that running out of it can be seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef unsigned long long device_pointer;
enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NOT_READY = 600, CAPTURE_UNSUPPORTED = 900 };
#define NEED_CONTEXT if (!depth) return INVALID_CONTEXT

static const size_t limit = 1 << 20;
static size_t used;
static long device_blocks, host_blocks, streams, events, graphs, launches, retained;
static _Thread_local long depth;
static _Thread_local void *stack[16];

void stand_in_counts(long *out) {
    long counts[] = {device_blocks, host_blocks, streams, events, graphs, launches, retained, depth};
    memcpy(out, counts, sizeof counts);
}

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 0; return ordinal ? INVALID_DEVICE : 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Stand-in", size); return 0; }
int cuDeviceComputeCapability(int *major, int *minor, int device) { *major = 8; *minor = 9; return 0; }
int cuDeviceGetAttribute(int *value, int what, int device) { *value = what == 75 ? 8 : what == 76 ? 9 : 1; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &retained; retained++; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return 0; }
int cuCtxPushCurrent_v2(void *context) { stack[depth++] = context; return 0; }
int cuCtxPopCurrent_v2(void **context) { NEED_CONTEXT; *context = stack[--depth]; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuGetErrorString(int error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : error == INVALID_CONTEXT ? "invalid device context" : "error";
    return 0;
}

/* the size lies before the block, so that what is freed is counted */
int cuMemAlloc_v2(device_pointer *out, size_t size) {
    NEED_CONTEXT;
    if (used + size > limit) return OUT_OF_MEMORY;
    size_t *block = aligned_alloc(256, 256 + (size + 255) / 256 * 256);
    *block = size;
    used += size;
    device_blocks++;
    *out = (device_pointer)block + 256;
    return 0;
}
int cuMemFree_v2(device_pointer pointer) {
    NEED_CONTEXT;
    size_t *block = (size_t *)(pointer - 256);
    used -= *block;
    device_blocks--;
    free(block);
    return 0;
}
int cuMemGetInfo_v2(size_t *available, size_t *total) { NEED_CONTEXT; *available = limit - used; *total = limit; return 0; }
int cuMemHostAlloc(void **out, size_t size, unsigned flags) { NEED_CONTEXT; *out = malloc(size); host_blocks++; return 0; }
int cuMemFreeHost(void *pointer) { NEED_CONTEXT; free(pointer); host_blocks--; return 0; }

/* what an event was recorded as: who waits for it waits for that, though it be recorded anew; never freed, as it is small */
struct mark {
    double seconds; /* when it was passed; 0 before */
    struct stream *stream;
};
struct event {
    struct mark *mark;
};
struct work {
    void *to;
    const void *from;
    size_t size;
    void (*call)(void *);
    struct mark *mark, *awaited;
    struct work *next;
};
struct queue {
    struct work *first, *last;
};
struct stream {
    struct queue pending, captured;
    int capturing;
};
static struct stream default_stream;
static struct stream *known(struct stream *stream) { return stream ? stream : &default_stream; }
static int append(struct queue *queue, struct work work) {
    struct work *copy = malloc(sizeof work);
    *copy = work;
    copy->next = NULL;
    if (queue->last) queue->last->next = copy;
    else queue->first = copy;
    queue->last = copy;
    return 0;
}
static int enqueue(struct stream *stream, struct work work) {
    stream = known(stream);
    return append(stream->capturing ? &stream->captured : &stream->pending, work);
}
void stand_in_enqueue(struct stream *stream, void (*call)(void *)) { enqueue(stream, (struct work){.call = call}); }

int cuStreamCreate(struct stream **stream, unsigned flags) {
    NEED_CONTEXT;
    if (flags != 1) return INVALID_VALUE; /* CU_STREAM_NON_BLOCKING is what an engine wants */
    *stream = calloc(1, sizeof **stream);
    streams++;
    return 0;
}
int cuStreamDestroy_v2(struct stream *stream) { streams--; free(stream); return 0; }
static void run_one(struct stream *stream);
static void reach(struct mark *mark) {
    while (mark && !mark->seconds) run_one(mark->stream);
}
static void run_one(struct stream *stream) {
    struct work *work = stream->pending.first;
    stream->pending.first = work->next;
    if (!work->next) stream->pending.last = NULL;
    if (work->call) work->call(NULL);
    else if (work->awaited) reach(work->awaited);
    else if (work->mark) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        work->mark->seconds = now.tv_sec + 1e-9 * now.tv_nsec;
    } else memcpy(work->to, work->from, work->size);
    free(work);
}
int cuStreamSynchronize(struct stream *stream) {
    NEED_CONTEXT;
    stream = known(stream);
    if (stream->capturing) return CAPTURE_UNSUPPORTED;
    while (stream->pending.first) run_one(stream);
    return 0;
}
int cuMemcpyHtoDAsync_v2(device_pointer to, const void *from, size_t size, struct stream *stream) {
    NEED_CONTEXT;
    return enqueue(stream, (struct work){.to = (void *)to, .from = from, .size = size});
}
int cuMemcpyDtoHAsync_v2(void *to, device_pointer from, size_t size, struct stream *stream) {
    NEED_CONTEXT;
    return enqueue(stream, (struct work){.to = to, .from = (void *)from, .size = size});
}
int cuMemcpyDtoDAsync_v2(device_pointer to, device_pointer from, size_t size, struct stream *stream) {
    NEED_CONTEXT;
    return enqueue(stream, (struct work){.to = (void *)to, .from = (void *)from, .size = size});
}
int cuEventCreate(struct event **event, unsigned flags) { NEED_CONTEXT; *event = calloc(1, sizeof **event); events++; return 0; }
int cuEventDestroy_v2(struct event *event) { events--; free(event); return 0; }
int cuEventRecord(struct event *event, struct stream *stream) {
    NEED_CONTEXT;
    event->mark = calloc(1, sizeof *event->mark);
    event->mark->stream = known(stream);
    return enqueue(stream, (struct work){.mark = event->mark});
}
int cuEventSynchronize(struct event *event) { NEED_CONTEXT; reach(event->mark); return 0; }
int cuStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
    NEED_CONTEXT;
    return flags ? INVALID_VALUE : enqueue(stream, (struct work){.awaited = event->mark});
}
int cuEventElapsedTime_v2(float *milliseconds, struct event *from, struct event *to) {
    if (!from->mark || !to->mark || !from->mark->seconds || !to->mark->seconds) return NOT_READY;
    *milliseconds = 1e3 * (to->mark->seconds - from->mark->seconds);
    return 0;
}
int cuEventElapsedTime(float *milliseconds, struct event *from, struct event *to) { return cuEventElapsedTime_v2(milliseconds, from, to); }

/* graphs, by the names that cuda-bindings asks for through cuGetProcAddress */
static void copy_work(struct queue *to, const struct queue *from) {
    for (struct work *work = from->first; work; work = work->next) append(to, *work);
}
int cuStreamBeginCapture_v2(struct stream *stream, int mode) {
    if (mode != 1 || stream->capturing) return INVALID_VALUE; /* thread-local, so that other threads go on */
    stream->capturing = 1;
    stream->captured = (struct queue){0};
    return 0;
}
int cuStreamEndCapture(struct stream *stream, struct queue **graph) {
    if (!stream->capturing) return INVALID_VALUE;
    stream->capturing = 0;
    *graph = calloc(1, sizeof **graph);
    copy_work(*graph, &stream->captured);
    graphs++;
    return 0;
}
int cuGraphInstantiateWithFlags(struct queue **executable, struct queue *graph, unsigned long long flags) {
    *executable = calloc(1, sizeof **executable);
    copy_work(*executable, graph);
    graphs++;
    return 0;
}
int cuGraphLaunch(struct queue *executable, struct stream *stream) {
    NEED_CONTEXT;
    launches++;
    copy_work(&known(stream)->pending, executable);
    return 0;
}
int cuGraphDestroy(struct queue *graph) { graphs--; free(graph); return 0; }
int cuGraphExecDestroy(struct queue *executable) { graphs--; free(executable); return 0; }
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    char newest[128];
    snprintf(newest, sizeof newest, "%s_v2", name);
    *function = dlsym(RTLD_DEFAULT, newest);
    if (!*function) *function = dlsym(RTLD_DEFAULT, name);
    if (status) *status = *function ? 0 : 1;
    return 0;
}

/* what else the PyCUDA at hand links against follows, each a function that names itself and ends the process */
