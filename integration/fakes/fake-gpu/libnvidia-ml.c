/*
 * A stand-in for libnvidia-ml.so.1: the few facts about cards that are asked for, told from the
 * directory that cards.h describes. Symbols, structs and codes are those of nvml.h (CUDA 12.8).
 *
 * Not imitated: MIG instances, persistence mode, and anything that changes a card.
 */

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cards.h"

#define EXPORT __attribute__((visibility("default")))

enum { SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, INSUFFICIENT_SIZE = 7 };

struct memory {
    uint64_t total_bytes, free_bytes, used_bytes;
};

struct process_info {
    unsigned pid;
    uint64_t used_bytes;
    unsigned gpu_instance, compute_instance;
};

static struct card cards[MAX_CARDS];
static int card_count = -1;

static int copy(char *to, unsigned room, const char *text) {
    if (strlen(text) >= room) {
        return INSUFFICIENT_SIZE;
    }
    strcpy(to, text);
    return SUCCESS;
}

EXPORT int nvmlInit_v2(void) {
    struct fault fault = fault_of("nvml");
    fault_strike(fault);
    if (fault.kind == FAULT_CODE) {
        return fault.code;
    }
    card_count = cards_read(cards);
    return SUCCESS;
}

EXPORT int nvmlShutdown(void) {
    card_count = -1;
    return SUCCESS;
}

EXPORT const char *nvmlErrorString(int code) {
    static const char *const texts[] = {
        [SUCCESS] = "Success",
        [UNINITIALIZED] = "Uninitialized",
        [INVALID_ARGUMENT] = "Invalid Argument",
        [NOT_SUPPORTED] = "Not Supported",
        [INSUFFICIENT_SIZE] = "Insufficient Size",
    };
    int known = code >= 0 && code < (int)(sizeof texts / sizeof *texts) && texts[code];
    return known ? texts[code] : "Unknown Error";
}

EXPORT int nvmlSystemGetDriverVersion(char *version, unsigned room) {
    char text[16];
    int cuda_version;
    if (card_count < 0) {
        return UNINITIALIZED;
    }
    cards_driver(text, &cuda_version);
    return copy(version, room, text);
}

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    struct fault fault = fault_of("count");
    fault_strike(fault);
    if (fault.kind == FAULT_CODE) {
        return fault.code;
    }
    if (card_count < 0) {
        return UNINITIALIZED;
    }
    *count = card_count;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, const struct card **card) {
    if (card_count < 0) {
        return UNINITIALIZED;
    }
    if (index >= (unsigned)card_count) {
        return INVALID_ARGUMENT;
    }
    *card = &cards[index];
    return SUCCESS;
}

EXPORT int nvmlDeviceGetUUID(const struct card *card, char *uuid, unsigned room) {
    return copy(uuid, room, card->uuid);
}

EXPORT int nvmlDeviceGetName(const struct card *card, char *name, unsigned room) {
    return copy(name, room, card->name);
}

EXPORT int nvmlDeviceGetMinorNumber(const struct card *card, unsigned *device_minor) {
    *device_minor = card->device_minor;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo(const struct card *card, struct memory *memory) {
    memory->total_bytes = card->total_bytes;
    memory->used_bytes = card_used(card->uuid);
    memory->free_bytes = memory->total_bytes - memory->used_bytes;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMigMode(const struct card *card, unsigned *mode, unsigned *pending) {
    if (card->mig < 0) {
        return NOT_SUPPORTED;
    }
    *mode = *pending = card->mig;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetPersistenceMode(const struct card *card, unsigned *mode) {
    (void)card;
    *mode = 1;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(const struct card *card, unsigned *count,
                                                   struct process_info *infos) {
    struct user users[MAX_USERS];
    unsigned found = card_users(card->uuid, users);
    unsigned room = *count;
    *count = found;
    if (room < found) {
        return INSUFFICIENT_SIZE;
    }
    for (unsigned i = 0; i < found; i++) {
        /* all bits set: the card is not divided into instances */
        infos[i] = (struct process_info){users[i].pid, users[i].used_bytes, ~0u, ~0u};
    }
    return SUCCESS;
}
