// Parallel loops and aligned buffers. Only C headers, so that the kernels link without a C++ standard library.

#pragma once

#include <stdint.h>
#include <stdlib.h>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Calls work(data) on `threads` threads and waits for all of them (threads.cpp).
void run_on_threads(int64_t threads, void (*work)(void*), void* data);

namespace {

template <typename T>
T smaller(T a, T b) {
    return b < a ? b : a;
}

template <typename T>
T larger(T a, T b) {
    return a < b ? b : a;
}

constexpr int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

constexpr int64_t round_up(int64_t value, int64_t step) { return divide_up(value, step) * step; }

// `count` values, aligned to a cache line and freed by the destructor. Aborts if there is not enough memory.
template <typename T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t count) { allocate(count); }
    void allocate(int64_t count) {
        memory_ = malloc(count * sizeof(T) + LINE);
        if (!memory_) abort();
        const uintptr_t address = reinterpret_cast<uintptr_t>(memory_);
        data_ = reinterpret_cast<T*>((address + LINE - 1) / LINE * LINE);
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { free(memory_); }
    T* get() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

  private:
    static constexpr uintptr_t LINE = 64;
    void* memory_ = nullptr;
    T* data_ = nullptr;
};

struct Work {
    void (*run)(const void* function, int64_t share);
    const void* function;
    int64_t count, next;
};

inline void take_shares(void* data) {
    Work& work = *static_cast<Work*>(data);
    for (;;) {
        const int64_t share = __atomic_fetch_add(&work.next, 1, __ATOMIC_RELAXED);
        if (share >= work.count) return;
        work.run(work.function, share);
    }
}

// Calls function(i) for each i below `count`, in any order, on at most `threads` threads.
template <typename Function>
void parallel_for(int64_t threads, int64_t count, const Function& function) {
    Work work{[](const void* f, int64_t i) { (*static_cast<const Function*>(f))(i); }, &function, count, 0};
    threads = smaller(threads, count);
    if (threads <= 1) take_shares(&work);
    else run_on_threads(threads, take_shares, &work);
}

// Divides 0 to `count` into up to `per_thread` ranges per thread, and calls function(begin, end) for each.
template <typename Function>
void parallel_ranges(int64_t threads, int64_t count, int64_t per_thread, const Function& function) {
    const int64_t shares = smaller(threads == 1 ? 1 : threads * per_thread, count);
    parallel_for(threads, shares, [&](int64_t i) { function(i * count / shares, (i + 1) * count / shares); });
}

}  // namespace
