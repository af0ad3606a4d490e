/*
 * A stand-in for libcuda.so.1, for machines without a GPU: the driver's checkpoint calls, and as
 * much of the rest as a program needs to have memory on a card. Symbols, structs and codes are those
 * of cuda.h; the cards are what cards.h describes.
 *
 * It has two roles, as the real one. Loaded by a workload, it opens the card's device nodes, keeps
 * device memory in files of the card (outside the process), and has a service thread. Loaded by
 * anybody else, it makes the checkpoint calls on a workload: the service thread is handed the call
 * and does it, in the workload, which is why nothing of it is lost when CRIU carries the workload
 * to another node in between. The two meet in a struct of the workload's own memory, found through
 * /proc/PID/maps and written from outside, and a signal to the service thread says it is there.
 *
 * Imitated as measured on a real card (H100, driver 580):
 *  - Checkpoint copies all device memory into one private anonymous mapping of the target, whose
 *    pages it touches first and fills from the lowest address upwards (at the pace that cards.h
 *    describes); it unmaps the card, closes its nodes; threads go on, calls that need the card wait until the unlock.
 *  - A pid that is not there is answered 304, a process without CUDA 3 (a child forked by one with
 *    CUDA too), a call in the wrong state 401.
 *  - A restore needs a pair for each visible device: one missed, unknown, or mapped twice is
 *    answered 1, and the process stays checkpointed and can be restored yet.
 *  - A restore that runs out of memory is answered 2; the process stays checkpointed, but each
 *    further restore is answered 304.
 *  - A process that is frozen or stopped by SIGSTOP answers nothing but its restore thread: calls
 *    on it wait, the lock beyond its timeout, and so does the query of the state. When it goes on it
 *    does what was asked, the lock too, unless the caller has died in the meantime.
 *  - A lock does not stop a thread that is inside cuCtxSynchronize: it goes on polling a page, which a
 *    checkpoint takes away, and the process dies of that.
 *  - A child that a CUDA process has forked has its descriptors, which are of no use to it.
 *  - A call waits its turn while another is under way, and so does the query of the state. A call
 *    that the target has begun is finished even if its caller dies.
 *
 * Chosen here, not measured: a restore whose device node is missing is answered 100; without pairs
 * each device goes back to the card of its own UUID, and is answered 1 where there is none; a
 * driver before CUDA 13.0 answers pairs with 1; a target that dies during a call is answered 304;
 * the restore thread is told as the caller numbers threads.
 *
 * Not imitated: CRIU's refusal of the device nodes (these are of harmless memory devices, which it
 * can dump), mappings of them, IPC, managed memory, streams and kernels, so nothing that would let
 * a lock time out by itself: see cards.h for faults.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "cards.h"

#define EXPORT __attribute__((visibility("default")))

#define MAX_PAIRS MAX_CARDS
#define MAX_ALLOCATIONS 64
#define CONTEXT_BYTES (1 << 20) /* what a context takes of its card */
#define ALIGNMENT (2 << 20)
#define STAGED_BLOCK (4 << 20)
#define POLL_NS 200000
#define SYNCHRONIZE_POLLS 200
#define WAKE_SIGNAL (SIGRTMAX - 2)

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_OPERATING_SYSTEM = 304,
    CUDA_ERROR_ILLEGAL_STATE = 401,
    CUDA_ERROR_NOT_READY = 600,
};

enum state { RUNNING, LOCKED, CHECKPOINTED, FAILED };
enum verb { GET_STATE, LOCK, CHECKPOINT, RESTORE, UNLOCK, CRASH };

typedef struct {
    unsigned char bytes[16];
} CUuuid;

struct pair {
    CUuuid from, to;
};

struct lock_args {
    uint32_t timeout_ms;
    char reserved[60];
};

struct restore_args { /* of CUDA 13.4; the fields before it are the same since 13.0 */
    const struct pair *pairs;
    uint32_t pair_count, pad;
    void *out;
    char reserved[40];
};

_Static_assert(sizeof(struct lock_args) == 64, "CUcheckpointLockArgs");
_Static_assert(sizeof(struct restore_args) == 64, "CUcheckpointRestoreArgs");

struct call {
    enum verb verb;
    uint32_t timeout_ms;
    int caller; /* whose file in callers/ is locked for as long as the caller waits */
    uint32_t pair_count;
    struct pair pairs[MAX_PAIRS];
};

/* Where the two roles meet. The number of a call is written last, as is that of its answer. */
static struct mailbox {
    char magic[16];
    int pid, tid; /* as the target numbers them; no pid, no CUDA */
    struct call call;
    int code;
    enum state state;
    _Atomic uint32_t called, answered;
} mailbox = {.magic = "fake cuda 1"};

struct allocation {
    int device;
    uint64_t address, size_bytes; /* no address: a context */
    char *mapping;
    int fd;
    char path[PATH_BYTES];
};

static struct allocation allocations[MAX_ALLOCATIONS];
static int allocation_count;
static uint64_t next_address = 0x7f4000000000;

static struct card devices[MAX_CARDS]; /* those whose node can be opened */
static int device_count;
static int node_fds[MAX_CARDS + 2];
static int node_count;

static volatile int *polled; /* a page that threads in a call of ours look at */

static char *staged; /* device memory while checkpointed */
static size_t staged_bytes;
static int lost; /* a restore ran out of memory */

/* Held by whoever uses the card; who finds the process locked waits for the unlock. */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t unlocked = PTHREAD_COND_INITIALIZER;

static __thread int current_device = -1;

static CUuuid parse_uuid(const char *text) {
    CUuuid uuid = {{0}};
    int digits = 0;
    for (text += strlen("GPU-"); *text && digits < 32; text++) {
        if (*text != '-') {
            int digit = *text <= '9' ? *text - '0' : (*text | 32) - 'a' + 10;
            uuid.bytes[digits / 2] |= digit << (digits % 2 ? 0 : 4);
            digits++;
        }
    }
    return uuid;
}

static int find_uuid(const struct card *cards, int count, const CUuuid *uuid) {
    for (int i = 0; i < count; i++) {
        CUuuid one = parse_uuid(cards[i].uuid);
        if (memcmp(&one, uuid, sizeof one) == 0) {
            return i;
        }
    }
    return -1;
}

/* Device nodes */

static int open_node(const char *name) {
    char path[PATH_BYTES];
    const char *dir = getenv("FAKE_GPU_DEV");
    snprintf(path, sizeof path, "%s/nvidia%s", dir ? dir : "/dev", name);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        node_fds[node_count++] = fd;
    }
    return fd >= 0;
}

static int open_card_node(const struct card *card) {
    char minor[16];
    snprintf(minor, sizeof minor, "%u", card->device_minor);
    return open_node(minor);
}

static void close_nodes(void) {
    while (node_count > 0) {
        close(node_fds[--node_count]);
    }
}

/* Device memory */

static void release(struct allocation *allocation) {
    munmap(allocation->mapping, allocation->size_bytes);
    unlink(allocation->path);
    close(allocation->fd);
    allocation->mapping = NULL;
}

/* A file of the card, which gets its name once it is locked: unlocked ones are nobody's. */
static int make_piece(struct allocation *allocation, const char *uuid) {
    char hidden[PATH_BYTES];
    snprintf(hidden, sizeof hidden, "%s/%s/memory/.XXXXXX", cards_dir(), uuid);
    allocation->fd = mkostemp(hidden, O_CLOEXEC);
    if (allocation->fd < 0) {
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    snprintf(allocation->path, sizeof allocation->path, "%s", hidden);
    char *dot = strrchr(allocation->path, '/') + 1;
    memmove(dot, dot + 1, strlen(dot));
    if (flock(allocation->fd, LOCK_EX) != 0 ||
        ftruncate(allocation->fd, allocation->size_bytes) != 0 ||
        rename(hidden, allocation->path) != 0) {
        unlink(hidden);
        close(allocation->fd);
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    allocation->mapping = mmap(NULL, allocation->size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                               allocation->fd, 0);
    if (allocation->mapping == MAP_FAILED) {
        abort();
    }
    return CUDA_SUCCESS;
}

/* Take what the allocation needs from the card; one process at a time looks how much is left. */
static int place(struct allocation *allocation, const struct card *card) {
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", cards_dir(), card->uuid);
    int card_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (card_fd < 0) {
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    flock(card_fd, LOCK_EX);
    int code = CUDA_ERROR_OUT_OF_MEMORY;
    if (card_used(card->uuid) + allocation->size_bytes <= card->total_bytes) {
        code = make_piece(allocation, card->uuid);
    }
    close(card_fd);
    return code;
}

static int allocate(int device, uint64_t size_bytes, uint64_t address) {
    if (allocation_count == MAX_ALLOCATIONS) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct allocation *made = &allocations[allocation_count];
    *made = (struct allocation){.device = device, .size_bytes = size_bytes, .address = address};
    int code = place(made, &devices[device]);
    allocation_count += code == CUDA_SUCCESS;
    return code;
}

/* Where in this process the device's bytes are; NULL where nothing is allocated. */
static char *find_bytes(uint64_t address, size_t size) {
    for (int i = 0; i < allocation_count; i++) {
        uint64_t begin = allocations[i].address, end = begin + allocations[i].size_bytes;
        if (begin && address >= begin && address < end && size <= end - address) {
            return allocations[i].mapping + (address - begin);
        }
    }
    return NULL;
}

static void map_polled(int protection, int flags) {
    polled = mmap((void *)polled, sysconf(_SC_PAGESIZE), protection, flags | MAP_ANONYMOUS, -1, 0);
    if (polled == MAP_FAILED) {
        abort();
    }
}

/* What the service thread does for a caller */

static int lock(const struct call *call) {
    struct timespec end;
    if (mailbox.state != RUNNING) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += call->timeout_ms / 1000;
    end.tv_nsec += call->timeout_ms % 1000 * 1000000L;
    if (end.tv_nsec >= 1000000000L) {
        end.tv_sec++;
        end.tv_nsec -= 1000000000L;
    }
    if (call->timeout_ms == 0) {
        pthread_mutex_lock(&gate);
    } else if (pthread_mutex_clocklock(&gate, CLOCK_MONOTONIC, &end) != 0) {
        return CUDA_ERROR_NOT_READY;
    }
    mailbox.state = LOCKED;
    pthread_mutex_unlock(&gate);
    return CUDA_SUCCESS;
}

/* At a pace, the first block is not right before the end. */
static void stage(void) {
    unsigned pace_ms = cards_pace();
    char *to = staged;
    for (size_t i = 0; pace_ms && i < staged_bytes; i += sysconf(_SC_PAGESIZE)) {
        ((volatile char *)staged)[i] = 0;
    }
    for (int i = 0; i < allocation_count; i++) {
        for (size_t done = 0, size; done < allocations[i].size_bytes; done += size) {
            size_t left = allocations[i].size_bytes - done;
            size = left < STAGED_BLOCK ? left : STAGED_BLOCK;
            memcpy(to, allocations[i].mapping + done, size);
            to += size;
            usleep(pace_ms * 1000);
            if (pace_ms && to == staged + size) {
                staged[0] ^= 0xff;
            }
        }
        release(&allocations[i]);
    }
    if (pace_ms && staged_bytes) {
        staged[0] ^= 0xff;
    }
}

static int checkpoint(void) {
    if (mailbox.state != LOCKED) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    staged_bytes = 0;
    for (int i = 0; i < allocation_count; i++) {
        staged_bytes += allocations[i].size_bytes;
    }
    if (staged_bytes) {
        staged = mmap(NULL, staged_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                      0);
        if (staged == MAP_FAILED) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    stage();
    close_nodes();
    map_polled(PROT_NONE, MAP_PRIVATE | MAP_FIXED);
    mailbox.state = CHECKPOINTED;
    return CUDA_SUCCESS;
}

/* The card that each visible device is to be restored on. */
static int map_devices(const struct call *call, struct card targets[MAX_CARDS]) {
    struct card cards[MAX_CARDS];
    char version[16];
    int cuda_version, mapped[MAX_CARDS] = {0}, taken[MAX_CARDS] = {0};
    int card_count = cards_read(cards);
    cards_driver(version, &cuda_version);
    if (call->pair_count && (call->pair_count != (unsigned)device_count || cuda_version < 13000)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (int i = 0; i < device_count; i++) {
        CUuuid same = parse_uuid(devices[i].uuid);
        const CUuuid *from = call->pair_count ? &call->pairs[i].from : &same;
        const CUuuid *to = call->pair_count ? &call->pairs[i].to : &same;
        int device = find_uuid(devices, device_count, from);
        int card = find_uuid(cards, card_count, to);
        if (device < 0 || card < 0 || mapped[device]++ || taken[card]++) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        targets[device] = cards[card];
    }
    return CUDA_SUCCESS;
}

static int open_nodes(const struct card *cards) {
    int opened = open_node("ctl") && open_node("-uvm");
    for (int i = 0; opened && i < device_count; i++) {
        opened = open_card_node(&cards[i]);
    }
    if (!opened) {
        close_nodes();
    }
    return opened;
}

static int place_all(const struct card *cards) {
    for (int i = 0; i < allocation_count; i++) {
        int code = place(&allocations[i], &cards[allocations[i].device]);
        if (code != CUDA_SUCCESS) {
            while (i-- > 0) {
                release(&allocations[i]);
            }
            return code;
        }
    }
    return CUDA_SUCCESS;
}

static int restore(const struct call *call) {
    struct card targets[MAX_CARDS];
    if (mailbox.state != CHECKPOINTED) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    if (lost) {
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    int code = map_devices(call, targets);
    if (code != CUDA_SUCCESS) {
        return code;
    }
    if (!open_nodes(targets)) {
        return CUDA_ERROR_NO_DEVICE;
    }
    code = place_all(targets);
    if (code != CUDA_SUCCESS) {
        close_nodes();
        lost = code == CUDA_ERROR_OUT_OF_MEMORY;
        return code;
    }
    char *from = staged;
    for (int i = 0; i < allocation_count; i++) {
        memcpy(allocations[i].mapping, from, allocations[i].size_bytes);
        from += allocations[i].size_bytes;
    }
    if (staged) {
        munmap(staged, staged_bytes);
        staged = NULL;
    }
    memcpy(devices, targets, sizeof targets);
    map_polled(PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED);
    mailbox.state = LOCKED;
    return CUDA_SUCCESS;
}

static int unlock(void) {
    if (mailbox.state != LOCKED) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    pthread_mutex_lock(&gate);
    mailbox.state = RUNNING;
    pthread_cond_broadcast(&unlocked);
    pthread_mutex_unlock(&gate);
    return CUDA_SUCCESS;
}

static int caller_waits(int caller) {
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/callers/%d", cards_dir(), caller);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    int waits = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0;
    close(fd);
    return waits;
}

static int perform(const struct call *call) {
    switch (call->verb) {
    case GET_STATE:
        return CUDA_SUCCESS;
    case LOCK:
        return lock(call);
    case CHECKPOINT:
        return checkpoint();
    case RESTORE:
        return restore(call);
    case UNLOCK:
        return unlock();
    case CRASH:
        *(volatile char *)NULL = 0;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

static void *serve(void *ready) {
    sigset_t wake;
    sigemptyset(&wake);
    sigaddset(&wake, WAKE_SIGNAL);
    pthread_setname_np(pthread_self(), "cuda00001400006");
    mailbox.tid = gettid();
    mailbox.pid = getpid();
    *(atomic_int *)ready = 1;
    for (;;) {
        uint32_t number = mailbox.called;
        if (number != mailbox.answered) {
            struct call call = mailbox.call;
            if (caller_waits(call.caller)) {
                mailbox.code = perform(&call);
            }
            mailbox.answered = number;
        } else {
            sigwaitinfo(&wake, NULL); /* whatever ends the wait: look again */
        }
    }
    return NULL;
}

static int start_service(void) {
    sigset_t all, before;
    pthread_t thread;
    atomic_int ready = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread, NULL, serve, &ready);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    while (!failed && !ready) {
        sched_yield();
    }
    return failed ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
}

/* The workload's calls */

static int enter(void) {
    if (mailbox.pid != getpid()) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    pthread_mutex_lock(&gate);
    while (mailbox.state != RUNNING) {
        pthread_cond_wait(&unlocked, &gate);
    }
    return CUDA_SUCCESS;
}

static int leave(int code) {
    pthread_mutex_unlock(&gate);
    return code;
}

EXPORT int cuDriverGetVersion(int *version) {
    char text[16];
    cards_driver(text, version);
    return CUDA_SUCCESS;
}

EXPORT int cuInit(unsigned flags) {
    struct card cards[MAX_CARDS];
    if (flags) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (mailbox.pid == getpid()) {
        return CUDA_SUCCESS;
    }
    if (!open_node("ctl") || !open_node("-uvm")) {
        close_nodes();
        return CUDA_ERROR_NO_DEVICE;
    }
    int count = cards_read(cards);
    for (int i = 0; i < count; i++) {
        if (open_card_node(&cards[i])) {
            devices[device_count++] = cards[i];
        }
    }
    if (!device_count) {
        close_nodes();
        return CUDA_ERROR_NO_DEVICE;
    }
    map_polled(PROT_READ | PROT_WRITE, MAP_SHARED);
    return start_service();
}

EXPORT int cuDeviceGetCount(int *count) {
    *count = device_count;
    return mailbox.pid == getpid() ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

EXPORT int cuDeviceGetUuid(CUuuid *uuid, int device) {
    if (device < 0 || device >= device_count) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *uuid = parse_uuid(devices[device].uuid);
    return CUDA_SUCCESS;
}

/* A context is told apart by the number of its device, counted from 1. */
EXPORT int cuDevicePrimaryCtxRetain(uintptr_t *context, int device) {
    int code = enter();
    if (code != CUDA_SUCCESS) {
        return code;
    }
    if (device < 0 || device >= device_count) {
        return leave(CUDA_ERROR_INVALID_DEVICE);
    }
    *context = device + 1;
    for (int i = 0; i < allocation_count; i++) {
        if (allocations[i].device == device && !allocations[i].address) {
            return leave(CUDA_SUCCESS);
        }
    }
    return leave(allocate(device, CONTEXT_BYTES, 0));
}

EXPORT int cuCtxSetCurrent(uintptr_t context) {
    current_device = (int)context - 1;
    return CUDA_SUCCESS;
}

EXPORT int cuCtxSynchronize(void) {
    const struct timespec pause = {0, POLL_NS};
    if (mailbox.pid != getpid()) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    for (int i = 0; i < SYNCHRONIZE_POLLS && !*polled; i++) {
        nanosleep(&pause, NULL);
    }
    return CUDA_SUCCESS;
}

EXPORT int cuMemAlloc_v2(uint64_t *address, size_t size_bytes) {
    int code = enter();
    if (code != CUDA_SUCCESS) {
        return code;
    }
    if (current_device < 0) {
        return leave(CUDA_ERROR_INVALID_CONTEXT);
    }
    if (size_bytes == 0) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    code = allocate(current_device, size_bytes, next_address);
    if (code == CUDA_SUCCESS) {
        *address = next_address;
        next_address += (size_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    return leave(code);
}

EXPORT int cuMemFree_v2(uint64_t address) {
    int code = enter();
    if (code != CUDA_SUCCESS) {
        return code;
    }
    for (int i = 0; i < allocation_count; i++) {
        if (address && allocations[i].address == address) {
            release(&allocations[i]);
            allocations[i] = allocations[--allocation_count];
            return leave(CUDA_SUCCESS);
        }
    }
    return leave(CUDA_ERROR_INVALID_VALUE);
}

EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size_bytes) {
    int code = enter();
    if (code != CUDA_SUCCESS) {
        return code;
    }
    char *bytes = find_bytes(to, size_bytes);
    if (!bytes) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    memcpy(bytes, from, size_bytes);
    return leave(CUDA_SUCCESS);
}

EXPORT int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size_bytes) {
    int code = enter();
    if (code != CUDA_SUCCESS) {
        return code;
    }
    const char *bytes = find_bytes(from, size_bytes);
    if (!bytes) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    memcpy(to, bytes, size_bytes);
    return leave(CUDA_SUCCESS);
}

/* The caller's side; -DWITHOUT_CHECKPOINT makes a driver that is too old for it. */

#ifndef WITHOUT_CHECKPOINT

struct target {
    int pid;
    uintptr_t mailbox;
    int caller_fd;
};

/* The last number that a status line gives, which is the innermost namespace's. */
static int innermost(const char *path) {
    char line[256];
    int number = -1;
    FILE *file = fopen(path, "re");
    if (!file) {
        return -1;
    }
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, "NSpid:", 6) == 0) {
            number = atoi(strrchr(line, '\t') + 1);
        }
    }
    fclose(file);
    return number;
}

/* Where the target has this library; 0 if it has not loaded it. */
static uintptr_t library_base(int pid) {
    char path[64], line[512];
    unsigned long begin, offset;
    uintptr_t base = 0;
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "re");
    while (maps && !base && fgets(line, sizeof line, maps)) {
        if (strstr(line, "/libcuda.so.1") &&
            sscanf(line, "%lx-%*x %*s %lx", &begin, &offset) == 2 && offset == 0) {
            base = begin;
        }
    }
    if (maps) {
        fclose(maps);
    }
    return base;
}

static int peek(const struct target *target, size_t offset, void *to, size_t size) {
    struct iovec here = {to, size}, there = {(void *)(target->mailbox + offset), size};
    return process_vm_readv(target->pid, &here, 1, &there, 1, 0) == (ssize_t)size;
}

static int poke(const struct target *target, size_t offset, const void *from, size_t size) {
    struct iovec here = {(void *)from, size}, there = {(void *)(target->mailbox + offset), size};
    return process_vm_writev(target->pid, &here, 1, &there, 1, 0) == (ssize_t)size;
}

#define PEEK(target, field) \
    peek(target, offsetof(struct mailbox, field), &(field), sizeof(field))

static int find_target(int pid, struct target *target) {
    char path[64], magic[sizeof mailbox.magic];
    Dl_info self;
    int own;
    struct target found = {.pid = pid, .caller_fd = -1};
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    int number = pid > 0 ? innermost(path) : -1;
    if (number < 0) {
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    uintptr_t base = library_base(pid);
    if (!base || !dladdr(&mailbox, &self)) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    found.mailbox = base + ((uintptr_t)&mailbox - (uintptr_t)self.dli_fbase);
    if (!PEEK(&found, magic) || memcmp(magic, mailbox.magic, sizeof magic) != 0 ||
        !peek(&found, offsetof(struct mailbox, pid), &own, sizeof own) || own != number) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    *target = found;
    return CUDA_SUCCESS;
}

static int service_thread(const struct target *target) {
    char path[128];
    int tid, found = -1;
    if (!PEEK(target, tid)) {
        return -1;
    }
    snprintf(path, sizeof path, "/proc/%d/task", target->pid);
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir && found < 0 && (entry = readdir(dir));) {
        snprintf(path, sizeof path, "/proc/%d/task/%.10s/status", target->pid, entry->d_name);
        if (entry->d_name[0] != '.' && innermost(path) == tid) {
            found = atoi(entry->d_name);
        }
    }
    if (dir) {
        closedir(dir);
    }
    return found;
}

/* One caller at a time; the lock also tells the target that somebody waits. */
static int take_turn(struct target *target) {
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/callers/%d", cards_dir(), target->pid);
    target->caller_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    return target->caller_fd >= 0 && flock(target->caller_fd, LOCK_EX) == 0;
}

static int post(const struct target *target, const struct call *call, uint32_t *number) {
    uint32_t called;
    int tid = service_thread(target);
    if (tid < 0 || !PEEK(target, called)) {
        return 0;
    }
    *number = called + 1;
    return poke(target, offsetof(struct mailbox, call), call, sizeof *call) &&
           poke(target, offsetof(struct mailbox, called), number, sizeof *number) &&
           syscall(SYS_tgkill, target->pid, tid, WAKE_SIGNAL) == 0;
}

static int wait_for(const struct target *target, uint32_t number) {
    const struct timespec pause = {0, POLL_NS};
    uint32_t answered = number - 1;
    int code;
    while (answered != number) {
        nanosleep(&pause, NULL);
        if (!PEEK(target, answered)) {
            return CUDA_ERROR_OPERATING_SYSTEM;
        }
    }
    return PEEK(target, code) ? code : CUDA_ERROR_OPERATING_SYSTEM;
}

/* Have the target do the call, without regard to faults; *state* is what it is in afterwards. */
static int ask(int pid, struct call *call, enum state *answer) {
    struct target target;
    uint32_t number;
    enum state state;
    int code = find_target(pid, &target);
    if (code != CUDA_SUCCESS) {
        return code;
    }
    call->caller = pid;
    code = CUDA_ERROR_OPERATING_SYSTEM;
    if (take_turn(&target) && post(&target, call, &number)) {
        code = wait_for(&target, number);
        if (PEEK(&target, state)) {
            *answer = state;
        }
    }
    close(target.caller_fd);
    return code;
}

static int ask_scripted(int pid, struct call *call, const char *name, enum state *state) {
    struct fault fault = fault_of(name);
    if (fault.kind == FAULT_CODE) {
        if (fault.code == CUDA_ERROR_NOT_READY) {
            usleep(call->timeout_ms * 1000);
        }
        return fault.code;
    }
    if (fault.kind == FAULT_FAILED) {
        *state = FAILED;
        return CUDA_SUCCESS;
    }
    if (fault.kind == FAULT_CRASH) {
        call->verb = CRASH;
    }
    if (!fault.afterwards) {
        fault_strike(fault);
    }
    int code = ask(pid, call, state);
    fault_strike(fault);
    return code;
}

EXPORT int cuCheckpointProcessGetState(int pid, int *answer) {
    struct call call = {.verb = GET_STATE};
    enum state state;
    int code = ask_scripted(pid, &call, "state", &state);
    if (code == CUDA_SUCCESS) {
        *answer = state;
    }
    return code;
}

EXPORT int cuCheckpointProcessGetRestoreThreadId(int pid, int *answer) {
    struct target target;
    struct fault fault = fault_of("tid");
    fault_strike(fault);
    int code = fault.kind == FAULT_CODE ? fault.code : find_target(pid, &target);
    if (code == CUDA_SUCCESS) {
        *answer = service_thread(&target);
    }
    return code;
}

EXPORT int cuCheckpointProcessLock(int pid, const struct lock_args *args) {
    struct call call = {.verb = LOCK, .timeout_ms = args ? args->timeout_ms : 0};
    enum state state;
    return ask_scripted(pid, &call, "lock", &state);
}

EXPORT int cuCheckpointProcessCheckpoint(int pid, const void *args) {
    struct call call = {.verb = CHECKPOINT};
    enum state state;
    (void)args;
    return ask_scripted(pid, &call, "checkpoint", &state);
}

EXPORT int cuCheckpointProcessRestore(int pid, const struct restore_args *args) {
    struct call call = {.verb = RESTORE};
    enum state state;
    if (args && args->pairs) {
        if (args->pair_count > MAX_PAIRS) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        call.pair_count = args->pair_count;
        memcpy(call.pairs, args->pairs, args->pair_count * sizeof *args->pairs);
    }
    return ask_scripted(pid, &call, "restore", &state);
}

EXPORT int cuCheckpointProcessUnlock(int pid, const void *args) {
    struct call call = {.verb = UNLOCK};
    enum state state;
    (void)args;
    return ask_scripted(pid, &call, "unlock", &state);
}

#endif
