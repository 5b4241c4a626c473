/* What ggml and the compiler's static C++ library take from versions of glibc after 2.28. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

/* glibc 2.32: whether the process has one thread. Never so: reference counts are then always counted atomically. */
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

/* glibc 2.36: random bits, for std::random_device. */
__attribute__((visibility("hidden"))) uint32_t arc4random(void) {
    uint32_t bits;
    size_t have = 0;
    while (have < sizeof bits) {
        ssize_t got = getrandom((char *)&bits + have, sizeof bits - have, 0);
        if (got > 0) {
            have += (size_t)got;
        } else if (got == 0) {
            abort();
        }
    }
    return bits;
}

/* glibc 2.29: the processor that the thread runs on, and its memory node. */
__attribute__((visibility("hidden"))) int getcpu(unsigned *cpu, unsigned *node) {
    return (int)syscall(SYS_getcpu, cpu, node, NULL);
}
