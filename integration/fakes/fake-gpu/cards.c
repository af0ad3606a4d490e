#define _GNU_SOURCE
#include "cards.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MAX_FAULTS 16
#define WAIT_US 1000

struct fault_line {
    char call[16], what[16];
    int skip, times, afterwards; /* times: -1 for ever */
};

const char *cards_dir(void) {
    const char *dir = getenv("FAKE_GPU_CARDS");
    return dir ? dir : "/var/lib/fake-gpu";
}

static int read_card(const char *uuid, struct card *card) {
    char path[PATH_BYTES], line[128];
    snprintf(path, sizeof path, "%s/%s/card", cards_dir(), uuid);
    FILE *file = fopen(path, "re");
    if (!file) {
        return 0;
    }
    *card = (struct card){.mig = -1};
    snprintf(card->uuid, sizeof card->uuid, "%s", uuid);
    while (fgets(line, sizeof line, file)) {
        sscanf(line, "minor %u", &card->device_minor);
        sscanf(line, "total %lu", &card->total_bytes);
        sscanf(line, "mig %d", &card->mig);
        sscanf(line, "name %95[^\n]", card->name);
    }
    fclose(file);
    return 1;
}

unsigned cards_pace(void) {
    char path[PATH_BYTES];
    unsigned pace_ms = 0;
    snprintf(path, sizeof path, "%s/pace", cards_dir());
    FILE *file = fopen(path, "re");
    if (file) {
        if (fscanf(file, "%u", &pace_ms) != 1) {
            pace_ms = 0;
        }
        fclose(file);
    }
    return pace_ms;
}

static int by_minor(const void *one, const void *other) {
    unsigned a = ((const struct card *)one)->device_minor;
    unsigned b = ((const struct card *)other)->device_minor;
    return a < b ? -1 : a > b;
}

int cards_read(struct card cards[MAX_CARDS]) {
    int count = 0;
    DIR *dir = opendir(cards_dir());
    if (!dir) {
        return 0;
    }
    for (struct dirent *entry; count < MAX_CARDS && (entry = readdir(dir));) {
        if (strncmp(entry->d_name, "GPU-", 4) == 0) {
            count += read_card(entry->d_name, &cards[count]);
        }
    }
    closedir(dir);
    qsort(cards, count, sizeof *cards, by_minor);
    return count;
}

void cards_driver(char version[16], int *cuda_version) {
    char path[PATH_BYTES];
    strcpy(version, "");
    *cuda_version = 0;
    snprintf(path, sizeof path, "%s/driver", cards_dir());
    FILE *file = fopen(path, "re");
    if (file) {
        if (fscanf(file, "%15s %d", version, cuda_version) != 2) {
            *cuda_version = 0;
        }
        fclose(file);
    }
}

/* Call *visit* for each piece of memory of the card that somebody holds; drop the others. */
static void each_piece(const char *uuid, void (*visit)(const struct stat *, void *), void *to) {
    char path[PATH_BYTES];
    struct stat found;
    snprintf(path, sizeof path, "%s/%s/memory", cards_dir(), uuid);
    DIR *dir = opendir(path);
    if (!dir) {
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.') { /* ".", "..", and what is in the making */
            continue;
        }
        int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
            continue;
        }
        if (flock(fd, LOCK_SH | LOCK_NB) == 0) {
            unlinkat(dirfd(dir), entry->d_name, 0);
        } else if (fstat(fd, &found) == 0) {
            visit(&found, to);
        }
        close(fd);
    }
    closedir(dir);
}

static void add_size(const struct stat *piece, void *sum) {
    *(uint64_t *)sum += piece->st_size;
}

uint64_t card_used(const char *uuid) {
    uint64_t used_bytes = 0;
    each_piece(uuid, add_size, &used_bytes);
    return used_bytes;
}

struct users {
    struct user *list;
    int count;
};

static void add_user(unsigned pid, uint64_t size_bytes, struct users *users) {
    for (int i = 0; i < users->count; i++) {
        if (users->list[i].pid == pid) {
            users->list[i].used_bytes += size_bytes;
            return;
        }
    }
    if (users->count < MAX_USERS) {
        users->list[users->count++] = (struct user){pid, size_bytes};
    }
}

/* /proc/locks names who holds a lock in the reader's own numbers. */
static void add_holder(const struct stat *piece, void *users) {
    char line[256];
    unsigned pid, major, minor;
    unsigned long inode;
    FILE *locks = fopen("/proc/locks", "re");
    while (locks && fgets(line, sizeof line, locks)) {
        if (sscanf(line, "%*s FLOCK ADVISORY WRITE %u %x:%x:%lu", &pid, &major, &minor,
                   &inode) == 4 &&
            inode == piece->st_ino && makedev(major, minor) == piece->st_dev) {
            add_user(pid, piece->st_size, users);
        }
    }
    if (locks) {
        fclose(locks);
    }
}

int card_users(const char *uuid, struct user users[MAX_USERS]) {
    struct users found = {users, 0};
    each_piece(uuid, add_holder, &found);
    return found.count;
}

static int parse_fault(char *text, struct fault_line *line) {
    char *word, *rest;
    *line = (struct fault_line){.times = -1};
    char *call = strtok_r(text, " \n", &rest);
    char *what = strtok_r(NULL, " \n", &rest);
    if (!call || !what) {
        return 0;
    }
    snprintf(line->call, sizeof line->call, "%s", call);
    snprintf(line->what, sizeof line->what, "%s", what);
    while ((word = strtok_r(NULL, " \n", &rest))) {
        if (strcmp(word, "afterwards") == 0) {
            line->afterwards = 1;
            continue;
        }
        char *number = strtok_r(NULL, " \n", &rest);
        *(strcmp(word, "skip") == 0 ? &line->skip : &line->times) = number ? atoi(number) : 0;
    }
    return 1;
}

static void write_fault(FILE *file, const struct fault_line *line) {
    fprintf(file, "%s %s skip %d", line->call, line->what, line->skip);
    if (line->times >= 0) {
        fprintf(file, " times %d", line->times);
    }
    fprintf(file, "%s\n", line->afterwards ? " afterwards" : "");
}

static struct fault fault_in(const struct fault_line *line) {
    struct fault fault = {.kind = FAULT_CODE, .afterwards = line->afterwards};
    if (strcmp(line->what, "block") == 0) {
        fault.kind = FAULT_BLOCK;
    } else if (strcmp(line->what, "wait") == 0) {
        fault.kind = FAULT_WAIT;
    } else if (strcmp(line->what, "die") == 0) {
        fault.kind = FAULT_DIE;
    } else if (strcmp(line->what, "failed") == 0) {
        fault.kind = FAULT_FAILED;
    } else if (strcmp(line->what, "crash") == 0) {
        fault.kind = FAULT_CRASH;
    } else {
        fault.code = atoi(line->what);
    }
    return fault;
}

/* The first line for *call* that is due. */
static struct fault take_fault(struct fault_line *lines, int count, const char *call) {
    for (int i = 0; i < count; i++) {
        if (strcmp(lines[i].call, call) != 0) {
            continue;
        }
        if (lines[i].skip > 0) {
            lines[i].skip--;
        } else if (lines[i].times != 0) {
            lines[i].times -= lines[i].times > 0;
            return fault_in(&lines[i]);
        }
    }
    return (struct fault){FAULT_NONE, 0, 0};
}

struct fault fault_of(const char *call) {
    char path[PATH_BYTES], text[128];
    struct fault_line lines[MAX_FAULTS];
    int count = 0;
    snprintf(path, sizeof path, "%s/faults", cards_dir());
    FILE *file = fopen(path, "r+e");
    if (!file) {
        return (struct fault){FAULT_NONE, 0, 0};
    }
    flock(fileno(file), LOCK_EX);
    while (count < MAX_FAULTS && fgets(text, sizeof text, file)) {
        count += parse_fault(text, &lines[count]);
    }
    struct fault fault = take_fault(lines, count, call);
    rewind(file);
    for (int i = 0; i < count; i++) {
        write_fault(file, &lines[i]);
    }
    fflush(file);
    if (ftruncate(fileno(file), ftell(file)) != 0) {
        abort();
    }
    fclose(file);
    return fault;
}

void fault_strike(struct fault fault) {
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/faults", cards_dir());
    while (fault.kind == FAULT_WAIT && access(path, F_OK) == 0) {
        usleep(WAIT_US);
    }
    if (fault.kind == FAULT_DIE) {
        kill(getpid(), SIGKILL);
    }
    while (fault.kind == FAULT_BLOCK || fault.kind == FAULT_DIE) {
        pause();
    }
}
