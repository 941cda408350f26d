/* A pool of threads that share the chunks of one task after the other.
 *
 * A task is done when all its chunks are, not when all threads have seen it: a thread that the
 * kernel does not schedule holds nobody up unless it has taken chunks. The leader (whoever calls
 * pool_run) works along, so that a pool without other threads, or one in a forked child that has
 * lost them, still works.
 */
#pragma once

#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Turns of a waiting loop before a thread sleeps: some ten microseconds, more than the gap between
 * two tasks of a step, less than what the kernel takes to notice that it runs for nothing. */
#define POOL_SPINS 2000
#define POOL_CHUNK_BITS 20
#define POOL_CHUNK_MASK ((1u << POOL_CHUNK_BITS) - 1)

typedef void (*pool_task)(void *argument, int first, int last);

typedef struct {
    /* task number (24 bits), number of chunks (20), first chunk that nobody has taken (20) */
    _Alignas(64) _Atomic uint64_t ticket;
    pool_task task;
    void *argument;
    _Alignas(64) _Atomic uint32_t num_done;
    _Atomic uint32_t leader_sleeps;
    /* Counts tasks; workers sleep on it. */
    _Alignas(64) _Atomic uint32_t signal;
    _Atomic uint32_t num_sleeping;
    _Atomic uint32_t stopping;
    int num_threads;
    pthread_t *workers;
} pool;

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Take some of the chunks that are left, fewer towards the end, and run them; 0: none was left. */
static int pool_work(pool *p) {
    uint64_t ticket = atomic_load_explicit(&p->ticket, memory_order_acquire);
    int first, limit, count;
    do {
        first = (int)(ticket & POOL_CHUNK_MASK);
        limit = (int)(ticket >> POOL_CHUNK_BITS & POOL_CHUNK_MASK);
        if (first >= limit) return 0;
        count = (limit - first) / (2 * p->num_threads);
        if (count < 1) count = 1;
    } while (!atomic_compare_exchange_weak_explicit(&p->ticket, &ticket, ticket + (uint64_t)count,
                                                    memory_order_acquire, memory_order_acquire));
    p->task(p->argument, first, first + count);
    uint32_t done = atomic_fetch_add(&p->num_done, (uint32_t)count) + (uint32_t)count;
    if (done == (uint32_t)limit && atomic_load(&p->leader_sleeps)) futex_wake(&p->num_done);
    return 1;
}

static void pool_sleep(pool *p, uint32_t seen) {
    atomic_fetch_add(&p->num_sleeping, 1);
    if (atomic_load(&p->signal) == seen) futex_wait(&p->signal, seen);
    atomic_fetch_sub(&p->num_sleeping, 1);
}

static void *pool_worker(void *argument) {
    pool *p = argument;
    while (!atomic_load(&p->stopping)) {
        uint32_t seen = atomic_load(&p->signal);
        while (pool_work(p)) {
        }
        int spins = 0;
        while (atomic_load_explicit(&p->signal, memory_order_relaxed) == seen) {
            _mm_pause();
            if (++spins >= POOL_SPINS) {
                pool_sleep(p, seen);
                break;
            }
        }
    }
    return NULL;
}

static void pool_wait(pool *p, uint32_t num_chunks) {
    for (int spins = 0; spins < POOL_SPINS; spins++) {
        if (atomic_load_explicit(&p->num_done, memory_order_acquire) == num_chunks) return;
        _mm_pause();
    }
    /* Asleep, this leaves its processor to the thread that it waits for. */
    atomic_store(&p->leader_sleeps, 1);
    uint32_t done;
    while ((done = atomic_load(&p->num_done)) != num_chunks) futex_wait(&p->num_done, done);
    atomic_store(&p->leader_sleeps, 0);
}

/* Run chunks 0 to num_chunks - 1 of a task; only one thread may call this at a time. */
static void pool_run(pool *p, pool_task task, void *argument, int num_chunks) {
    if (num_chunks <= 1 || p->num_threads == 1) {
        if (num_chunks > 0) task(argument, 0, num_chunks);
        return;
    }
    p->task = task;
    p->argument = argument;
    atomic_store_explicit(&p->num_done, 0, memory_order_relaxed);
    uint64_t number =
        (atomic_load_explicit(&p->ticket, memory_order_relaxed) >> 2 * POOL_CHUNK_BITS) + 1;
    atomic_store(&p->ticket,
                 number << 2 * POOL_CHUNK_BITS | (uint64_t)num_chunks << POOL_CHUNK_BITS);
    atomic_fetch_add(&p->signal, 1);
    if (atomic_load(&p->num_sleeping)) futex_wake(&p->signal);
    while (pool_work(p)) {
    }
    pool_wait(p, (uint32_t)num_chunks);
}

static void pool_destroy(pool *p) {
    atomic_store(&p->stopping, 1);
    atomic_fetch_add(&p->signal, 1);
    futex_wake(&p->signal);
    for (int i = 0; i < p->num_threads - 1; i++) pthread_join(p->workers[i], NULL);
    free(p->workers);
    free(p);
}

/* Start so many workers, or as many as the system allows. */
static void pool_start(pool *p, int num_workers) {
    p->num_threads = num_workers + 1; /* a worker may look at it as soon as it runs */
    int started = 0;
    while (started < num_workers && pthread_create(&p->workers[started], NULL, pool_worker, p) == 0)
        started++;
    p->num_threads = started + 1;
}

/* Return a pool of num_threads, the caller's included, or NULL. */
static pool *pool_create(int num_threads) {
    pool *p = aligned_alloc(64, sizeof(pool));
    if (!p) return NULL;
    *p = (pool){.num_threads = 1};
    p->workers = calloc((size_t)num_threads, sizeof(pthread_t));
    if (!p->workers) {
        free(p);
        return NULL;
    }
    /* Signals are for the threads that Python knows. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pool_start(p, num_threads - 1);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return p;
}
