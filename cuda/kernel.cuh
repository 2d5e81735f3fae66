// How a kernel is declared: one argument, a structure by value that src/kernels/cuda fills, and one shared memory, which is
// dynamic. ptx.cuh has everything that is written in PTX; kernels hold no assembly and call no CUDA built-in by themselves, so
// that the same source runs under tests/cuda/host.
#pragma once

#include "types.cuh"
#include "ptx.cuh"

// KERNEL(rms_norm, RmsNormArgs, 256, 4) { .. args.x .. }: at most so many threads a block, at least so many blocks a
// multiprocessor.
#if defined(DUQUANT_HOST)
#define KERNEL(name, Args, threads, blocks)                                                      \
    static void name##_thread(const Args &args);                                                 \
    extern "C" const char *name(const void *raw, const HostLaunch *launch) {                     \
        static_assert(sizeof(Args) <= 256, "as MAX_ARGUMENTS of launch.rs");                     \
        if (launch->argument_bytes != sizeof(Args)) return #name ": the arguments differ in size"; \
        if (launch->block > (threads)) return #name ": more threads than it is compiled for";    \
        return host::run(*launch, [raw] { name##_thread(*static_cast<const Args *>(raw)); });    \
    }                                                                                            \
    static void name##_thread(const Args &args)
#else
#define KERNEL(name, Args, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args args)
#endif
