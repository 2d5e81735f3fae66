// The functions of cuda/ptx.cuh in plain C++, so that g++ compiles the kernels and a test runs them: a CUDA thread is a fiber, a
// warp instruction a meeting of 32 fibers, a block runs as far as it can before another thread does.
//
// It is built to show mistakes. Warps run in an order drawn from the launch's seed, each as far as it can; lanes too, up to the
// next warp instruction. Shared memory starts as NaN. An asynchronous copy spoils its target when it is issued and fills it only
// when its thread waits. Lanes that meet at different instructions, barriers that nobody reaches, and wide accesses at odd
// addresses are reported; so are writes just beside shared memory. Behind it, and behind memory of tests, is a page that cannot
// be touched. tests/cuda_shim.rs plants mistakes that must be found.
#pragma once

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define DEVICE static inline __attribute__((unused))
#define METHOD inline
#define CONSTANT static const

// As tests/cuda/host/mod.rs fills it.
struct HostLaunch {
    u32 grid[3];
    u32 block;
    u32 shared;
    u32 argument_bytes;
    u64 seed;
};

namespace host {

struct Copy {
    u8 *to;
    const u8 *from;
    u32 bytes, room;
};

struct Fiber {
    void *stack_pointer = nullptr;
    u32 thread = 0;
    bool done = false;
    // Whether it called fence_device since it last met others and gave sums.
    bool fenced = false;
    // Waits while *epoch == seen.
    const u64 *epoch = nullptr;
    u64 seen = 0;
    std::vector<Copy> issued;
    std::vector<std::vector<Copy>> committed;
};

struct Meeting {
    const char *what = nullptr;
    void *operands[32] = {};
    u32 arrived = 0;
    u64 epoch = 0;
};

struct Barrier {
    u32 arrived = 0, expected = 0;
    u32 any = 0, result = 0;
    u64 epoch = 0;
};

constexpr size_t STACK = 128 * 1024;
constexpr size_t SHARED = 228 * 1024;
// Fills the bytes beside shared memory that are in its pages; whoever changes them wrote out of bounds.
constexpr u8 BESIDE = 0xc3;

struct Block {
    const HostLaunch *launch = nullptr;
    u32 index[3] = {};
    std::vector<Fiber> fibers;
    std::vector<Meeting> meetings;
    Barrier barriers[16];
    u8 *shared = nullptr;
    // The pages that shared memory lies in.
    u8 *shared_from = nullptr, *shared_to = nullptr;
    u8 *stacks = nullptr;
    void *scheduler = nullptr;
    Fiber *current = nullptr;
    std::string error;
    const std::function<void()> *body = nullptr;
    u64 random = 0;
    // What other emulations keep for a block (host_sm90.cuh).
    std::map<const void *, std::shared_ptr<void>> extra;
    // What they have to say when it ends: nullptr, or what is wrong.
    std::vector<std::function<const char *()>> at_end;
    // Sums that went to memory for other blocks, and who counted and has not fenced since (host_threads.cuh).
    u32 reductions = 0;
    const Fiber *counted = nullptr;

    u64 draw() {
        random += 0x9e3779b97f4a7c15ull;
        u64 z = random;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
};

inline thread_local Block *block = nullptr;

// --- fibers ----------------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
// Saves what a call keeps, stores the stack pointer in *from, goes on at `to`.
extern "C" void duquant_host_switch(void **from, void *to);
asm(R"(
.text
.weak duquant_host_switch
.type duquant_host_switch, @function
duquant_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size duquant_host_switch, .-duquant_host_switch
)");

inline void *prepare(u8 *stack_top, void (*entry)()) {
    void **top = reinterpret_cast<void **>(stack_top);
    *--top = nullptr;  // keeps the stack aligned as after a call
    *--top = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    return top;
}
inline void switch_to(void **from, void *to) { duquant_host_switch(from, to); }
#else
inline void *prepare(u8 *stack_top, void (*entry)()) {
    ucontext_t *context = new ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp = stack_top - STACK + 4096;
    context->uc_stack.ss_size = STACK - 4096;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
inline void switch_to(void **from, void *to) {
    if (*from == nullptr) *from = new ucontext_t;
    swapcontext(static_cast<ucontext_t *>(*from), static_cast<ucontext_t *>(to));
}
#endif

inline void to_scheduler() { switch_to(&block->current->stack_pointer, block->scheduler); }

// Ends the launch with a word; does not return.
[[noreturn]] inline void fail(const char *format, ...) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (block->error.empty()) {
        char place[160];
        snprintf(place, sizeof place, "block (%u, %u, %u), thread %u: ", block->index[0], block->index[1], block->index[2],
                 block->current ? block->current->thread : 0);
        block->error = std::string(place) + text;
    }
    for (;;) to_scheduler();
}

// Waits until *epoch is no longer what it is.
inline void wait_while(const u64 *epoch, u64 seen) {
    Fiber *me = block->current;
    me->epoch = epoch;
    me->seen = seen;
    while (*epoch == seen) to_scheduler();
    me->epoch = nullptr;
}

inline bool ready(const Fiber &fiber) { return !fiber.done && (fiber.epoch == nullptr || *fiber.epoch != fiber.seen); }

inline void fiber_main() {
    (*block->body)();
    Fiber *me = block->current;
    if (!me->issued.empty()) fail("it ends with asynchronous copies that were not committed");
    me->done = true;
    for (;;) to_scheduler();
}

// All 32 lanes bring their operand; the last one lets `complete` work on all.
template <class Complete>
inline void meet(const char *what, void *operand, Complete complete) {
    Meeting &meeting = block->meetings[block->current->thread / 32];
    if (meeting.arrived == 0) {
        meeting.what = what;
    } else if (meeting.what != what && std::strcmp(meeting.what, what) != 0) {
        fail("its warp has diverged: this lane is at %s, others at %s", what, meeting.what);
    }
    meeting.operands[block->current->thread % 32] = operand;
    meeting.arrived++;
    const u64 seen = meeting.epoch;
    if (meeting.arrived == 32) {
        complete(meeting.operands);
        meeting.arrived = 0;
        meeting.epoch++;
    } else {
        wait_while(&meeting.epoch, seen);
    }
}

inline void arrive(Barrier &barrier, u32 expected, u32 threads) {
    if (barrier.arrived == 0) {
        barrier.expected = expected;
    } else if (barrier.expected != expected) {
        fail("a barrier is used for %u threads and for %u at the same time", barrier.expected, expected);
    }
    barrier.arrived += threads;
    if (barrier.arrived > expected) fail("a barrier of %u threads got %u", expected, barrier.arrived);
    if (barrier.arrived == expected) {
        barrier.arrived = 0;
        barrier.result = barrier.any;
        barrier.any = 0;
        barrier.epoch++;
    }
}

inline thread_local u8 *alternate_stack = nullptr;
inline thread_local const char *kernel_name = "a kernel";

inline void on_fault(int number, siginfo_t *info, void *) {
    char text[300];
    const u32 thread = block && block->current ? block->current->thread : 0;
    const int length = snprintf(text, sizeof text, "\nhost shim: signal %d at address %p in block (%u, %u, %u), thread %u\n", number,
                                info->si_addr, block ? block->index[0] : 0, block ? block->index[1] : 0,
                                block ? block->index[2] : 0, thread);
    (void)!write(2, text, static_cast<size_t>(length));
    _exit(139);
}

// Reports the first byte beside shared memory that has changed.
inline void check_beside(Block &b) {
    const u8 *end = b.shared + b.launch->shared;
    for (const u8 *p = b.shared_from; p < b.shared_to; p++) {
        if (p == b.shared) p = end;
        if (p == b.shared_to || *p == BESIDE) continue;
        char text[160];
        snprintf(text, sizeof text, "block (%u, %u, %u): it wrote to byte %lld of %u bytes of shared memory", b.index[0], b.index[1],
                 b.index[2], static_cast<long long>(p - b.shared), b.launch->shared);
        b.error = text;
        return;
    }
}

inline void run_block(Block &b, const std::function<void()> &body) {
    const u32 threads = b.launch->block, warps = threads / 32;
    b.fibers.assign(threads, Fiber());
    b.meetings.assign(warps, Meeting());
    for (auto &barrier : b.barriers) barrier = Barrier();
    std::memset(b.shared_from, BESIDE, static_cast<size_t>(b.shared_to - b.shared_from));
    b.extra.clear();
    b.at_end.clear();
    b.reductions = 0;
    b.counted = nullptr;
    std::memset(b.shared, 0xff, b.launch->shared);
    b.body = &body;
    for (u32 t = 0; t < threads; t++) {
        b.fibers[t].thread = t;
        b.fibers[t].stack_pointer = prepare(b.stacks + (t + 1) * STACK, fiber_main);
    }
    for (;;) {
        bool progress = false, live = false;
        const u32 first_warp = b.launch->seed == 0 ? 0 : static_cast<u32>(b.draw() % warps);
        const u32 step = b.launch->seed % 2 == 0 ? 1 : warps - 1;
        for (u32 i = 0; i < warps; i++) {
            const u32 warp = (first_warp + i * step) % warps;
            // A warp goes on for as long as one of its lanes can.
            for (bool again = true; again;) {
                again = false;
                const u32 flip = b.launch->seed == 0 ? 0 : static_cast<u32>(b.draw() % 32);
                for (u32 l = 0; l < 32; l++) {
                    Fiber &fiber = b.fibers[warp * 32 + (l ^ flip)];
                    if (!ready(fiber)) continue;
                    b.current = &fiber;
                    switch_to(&b.scheduler, fiber.stack_pointer);
                    b.current = nullptr;
                    if (!b.error.empty()) return;
                    again = progress = true;
                }
            }
        }
        for (const Fiber &fiber : b.fibers) live |= !fiber.done;
        if (!live) {
            for (const auto &end : b.at_end) {
                if (const char *wrong = end()) b.error = wrong;
            }
            return check_beside(b);
        }
        if (!progress) {
            u32 stuck = 0;
            while (b.fibers[stuck].done) stuck++;
            const Meeting &meeting = b.meetings[stuck / 32];
            char text[300];
            snprintf(text, sizeof text,
                     "block (%u, %u, %u): deadlock; thread %u waits %s%s (%u lanes there), and nobody can go on", b.index[0],
                     b.index[1], b.index[2], stuck, meeting.arrived ? "at " : "at a barrier", meeting.arrived ? meeting.what : "",
                     meeting.arrived);
            b.error = text;
            return;
        }
    }
}

// Runs every block; nullptr, or what went wrong (valid until the thread's next launch).
inline const char *run(const HostLaunch &launch, const std::function<void()> &body) {
    static thread_local std::string message;
    message.clear();
    if (launch.block == 0 || launch.block % 32 != 0 || launch.block > 1024) return "the block is not made of whole warps";
    if (launch.shared > SHARED) return "more shared memory than any chip has";
    stack_t old_stack = {}, stack = {};
    if (alternate_stack == nullptr) alternate_stack = static_cast<u8 *>(std::malloc(1 << 16));
    stack.ss_sp = alternate_stack;
    stack.ss_size = 1 << 16;
    sigaltstack(&stack, &old_stack);
    struct sigaction action = {}, old_segv, old_bus;
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &old_segv);
    sigaction(SIGBUS, &action, &old_bus);

    const auto map = [](size_t bytes) {
        return static_cast<u8 *>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    };
    Block b;
    b.launch = &launch;
    b.random = launch.seed;
    b.stacks = map(launch.block * STACK);
    // Shared memory ends at a page that cannot be touched, starts at a multiple of 1024, and has no page in front.
    const size_t room = (SHARED + 4095) / 4096 * 4096 + 4096;
    u8 *shared_pages = map(room + 4096);
    const size_t start = room - (launch.shared + 1023) / 1024 * 1024;
    mprotect(shared_pages + room, 4096, PROT_NONE);
    mprotect(shared_pages, start / 4096 * 4096, PROT_NONE);
    b.shared = shared_pages + start;
    b.shared_from = shared_pages + start / 4096 * 4096;
    b.shared_to = shared_pages + room;
    block = &b;
    const u64 blocks = static_cast<u64>(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    const u64 first = launch.seed == 0 || blocks == 0 ? 0 : b.draw() % blocks;
    for (u64 i = 0; i < blocks && b.error.empty(); i++) {
        const u64 at = launch.seed % 2 == 0 ? (first + i) % blocks : (first + blocks - i) % blocks;
        b.index[0] = static_cast<u32>(at % launch.grid[0]);
        b.index[1] = static_cast<u32>(at / launch.grid[0] % launch.grid[1]);
        b.index[2] = static_cast<u32>(at / launch.grid[0] / launch.grid[1]);
        run_block(b, body);
    }
    block = nullptr;
    message = b.error;
    munmap(b.stacks, launch.block * STACK);
    munmap(shared_pages, room + 4096);
    sigaction(SIGSEGV, &old_segv, nullptr);
    sigaction(SIGBUS, &old_bus, nullptr);
    sigaltstack(&old_stack, nullptr);
    return message.empty() ? nullptr : message.c_str();
}

inline void check_aligned(const void *pointer, u32 bytes, const char *what) {
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) fail("%s at %p, which is no multiple of %u", what, pointer, bytes);
}

inline void check_shared(const void *pointer, u32 bytes, const char *what) {
    const u8 *p = static_cast<const u8 *>(pointer);
    if (p < block->shared || p + bytes > block->shared + block->launch->shared) {
        fail("%s at byte %lld of %u bytes of shared memory", what, static_cast<long long>(p - block->shared), block->launch->shared);
    }
}

template <class To, class From>
inline To cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline f32 half_to_f32(u16 bits) { return static_cast<f32>(cast<_Float16>(bits)); }
inline u16 half_of_f32(f32 x) { return cast<u16>(static_cast<_Float16>(x)); }
inline f32 bf16_to_f32(u16 bits) { return cast<f32>(static_cast<u32>(bits) << 16); }
inline u16 bf16_of_f32(f32 x) {
    const u32 bits = cast<u32>(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return static_cast<u16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace host

#include "host_threads.cuh"
#include "host_matrix.cuh"
