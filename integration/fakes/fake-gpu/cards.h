/*
 * What both stand-ins know: the cards of a node, who uses their memory, and scripted faults.
 *
 * A directory, /var/lib/fake-gpu or $FAKE_GPU_CARDS, is the cards; containers have it mounted at
 * the same path, in place of the kernel's driver:
 *
 *   driver            "580.159.03 13000": version of the driver, and of CUDA as libcuda counts
 *   <uuid>/card       lines "minor 3", "total 67108864", "mig 0" (left out: the card has no MIG)
 *                     and "name NVIDIA H100 80GB HBM3"
 *   <uuid>/memory/    one file for each piece of memory in use, locked with flock(2) for as long
 *                     as its owner lives: what nobody locks is free
 *   callers/          locked by whoever makes a checkpoint call on a process, by its pid
 *   pace              "20": a checkpoint takes so many ms for each 4 MiB; without it, none
 *   faults            what is to go wrong; read, and counted down, at each call
 *
 * A line of faults is CALL WHAT [skip N] [times N] [afterwards]:
 *
 *   CALL    state, tid, lock, checkpoint, restore, unlock, nvml (nvmlInit_v2) or count
 *           (nvmlDeviceGetCount_v2)
 *   WHAT    a number: answer it and do nothing (600: once the timeout of the lock has passed)
 *           block: never answer
 *           wait: go on only once the file faults is gone
 *           die: kill the calling process
 *           crash: kill the process that the call is made on, by a fault in the driver's thread
 *           failed: of state alone, answer CU_PROCESS_STATE_FAILED
 *   skip    the first N calls are let pass: "checkpoint 801 skip 1 times 1" is the second
 *   times   so many calls, then no more; without it all of them
 *   afterwards   do first what was asked, then block, wait or die
 *
 * The first line that applies counts.
 */

#ifndef CARDS_H
#define CARDS_H

#include <stddef.h>
#include <stdint.h>

#define MAX_CARDS 16
#define MAX_USERS 256
#define PATH_BYTES 320

struct card {
    char uuid[41]; /* GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx */
    char name[96];
    unsigned device_minor;
    uint64_t total_bytes;
    int mig; /* -1: the card does not know MIG */
};

struct user {
    unsigned pid;
    uint64_t used_bytes;
};

enum fault_kind { FAULT_NONE, FAULT_CODE, FAULT_BLOCK, FAULT_WAIT, FAULT_DIE, FAULT_FAILED, FAULT_CRASH };

struct fault {
    enum fault_kind kind;
    int code;
    int afterwards;
};

const char *cards_dir(void);

/* All cards, by minor; their number. */
int cards_read(struct card cards[MAX_CARDS]);

/* Read the driver's version (16 bytes) and that of CUDA. */
void cards_driver(char version[16], int *cuda_version);

/* Bytes of the card that a living process holds. */
uint64_t card_used(const char *uuid);

/* The processes that hold memory of the card, numbered as /proc is; at most MAX_USERS. */
int card_users(const char *uuid, struct user users[MAX_USERS]);

/* Milliseconds for each 4 MiB that a checkpoint copies. */
unsigned cards_pace(void);

/* What is scripted for this call, counted down. */
struct fault fault_of(const char *call);

/* Block, wait or die, if the fault says so. */
void fault_strike(struct fault fault);

#endif
