// Runs work on several threads: on Linux those of the OpenMP runtime that PyTorch has loaded, so that both share one
// thread pool; otherwise on threads that are created for the work.

#include "parallel.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace {

struct Task {
    void (*work)(void*);
    void* data;
};

#if defined(_WIN32)
using Thread = HANDLE;

DWORD WINAPI run(void* task) {
    static_cast<Task*>(task)->work(static_cast<Task*>(task)->data);
    return 0;
}

bool start(Thread& thread, Task& task) {
    thread = CreateThread(nullptr, 0, run, &task, 0, nullptr);
    return thread != nullptr;
}

void finish(Thread thread) {
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}
#else
using Thread = pthread_t;
using Parallel = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

const Parallel openmp = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));

void* run(void* task) {
    static_cast<Task*>(task)->work(static_cast<Task*>(task)->data);
    return nullptr;
}

bool start(Thread& thread, Task& task) { return pthread_create(&thread, nullptr, run, &task) == 0; }

void finish(Thread thread) { pthread_join(thread, nullptr); }
#endif

}  // namespace

void run_on_threads(int64_t threads, void (*work)(void*), void* data) {
#if !defined(_WIN32)
    if (openmp) return openmp(work, data, static_cast<unsigned>(threads), 0);
#endif
    const Buffer<Thread> others(threads);
    Task task{work, data};
    int64_t started = 0;
    while (started + 1 < threads && start(others[started], task)) ++started;
    work(data);
    while (started > 0) finish(others[--started]);
}
