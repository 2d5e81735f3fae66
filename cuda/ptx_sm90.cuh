// The instructions that Hopper (sm_90a) has and earlier chips lack, by name, as ptx.cuh: barriers in shared memory that count
// bytes, bulk copies, wgmma. tests/cuda/host/host_sm90.cuh has the same functions in plain C++.
#pragma once

#include "ptx.cuh"

// What wgmma reads of shared memory: 8 rows (tokens) of 128 bytes each are an atom of 1024 bytes with 128-byte swizzle, atoms of
// further rows follow at once. `tile` is at a multiple of 1024; `step` is the k32 step, 32 bytes along each row.
struct TileDescriptor {
    u64 bits;
};

#if defined(DUQUANT_HOST)
#include "host_sm90.cuh"
#else

// --- barriers in shared memory, 8 bytes each ---------------------------------------------------------------------------------

DEVICE void barrier_init(u64 *barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// After the thread that called barrier_init; the block's barrier must follow.
DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_arrive(u64 *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and has the phase wait for so many bytes of bulk copies.
DEVICE void barrier_arrive_expect(u64 *barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
// Waits for the end of the phase of this parity; the first phase has parity 0, and the one before it counts as over.
DEVICE void barrier_wait_parity(u64 *barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// --- bulk copies -------------------------------------------------------------------------------------------------------------

// `bytes`, a multiple of 16, from global to shared memory, both at multiples of 16; the barrier counts them when they are there.
DEVICE void copy_bulk(void *shared, const void *global, u32 bytes, u64 *barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}
// For what is read once, as weights in decode: it leaves the second-level cache first.
DEVICE void copy_bulk_once(void *shared, const void *global, u32 bytes, u64 *barrier) {
    asm volatile(
        "{\n"
        ".reg .b64 policy;\n"
        "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], policy;\n"
        "}" ::"r"(shared_address(shared)),
        "l"(global), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}

// --- registers: all warps of a warpgroup, N a multiple of 8 --------------------------------------------------------------------

template <u32 N>
DEVICE void registers_give() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <u32 N>
DEVICE void registers_take() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// --- wgmma: four warps, the first of them a multiple of four -------------------------------------------------------------------

// Before a wgmma whose registers, accumulators or A, were written by anything else.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// All but the last N committed groups are done: only then may their registers and their shared memory be touched.
template <int N>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Keeps the compiler from moving what reads the accumulators before the wait above it.
template <u32 COUNT>
DEVICE void wgmma_settle(i32 (&d)[COUNT]) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) asm volatile("" : "+r"(d[i])::"memory");
}

#define WGMMA_TEN(tens) \
    "%" tens "0, %" tens "1, %" tens "2, %" tens "3, %" tens "4, %" tens "5, %" tens "6, %" tens "7, %" tens "8, %" tens "9"
#define WGMMA_D4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define WGMMA_D8(i) WGMMA_D4(i), WGMMA_D4(i + 4)
#define WGMMA_D16(i) WGMMA_D8(i), WGMMA_D8(i + 8)
#define WGMMA_D32(i) WGMMA_D16(i), WGMMA_D16(i + 16)
#define WGMMA_D64(i) WGMMA_D32(i), WGMMA_D32(i + 32)
// d (+)= a b in i32: a is 64 x 32 unsigned 8-bit, warp w of the four holds rows 16 w to 16 w + 15 as in mma.m16n8k32; b is 32
// bytes of `TOKENS` rows of shared memory. A warp's d: word 4 j + 2 h + e is row g + 8 h, token 8 j + 2 t + e. With `add` false
// d is overwritten. a and d must stay as they are until a wgmma_wait.
#define WGMMA(tokens, results, a0, a1, a2, a3, b, scale, ...)                                                                \
    DEVICE void wgmma_u8(i32 (&d)[(tokens) / 2], const u32 (&a)[4], TileDescriptor tile, bool add) {                            \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" scale ", 0;\n"                                                    \
                     "wgmma.mma_async.sync.aligned.m64n" #tokens "k32.s32.u8.u8 {" results "}, {%" a0 ", %" a1 ", %" a2         \
                     ", %" a3 "}, %" b ", add;\n}"                                                                              \
                     : __VA_ARGS__                                                                                            \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tile.bits), "r"(static_cast<u32>(add)));                \
    }
WGMMA(8, "%0, %1, %2, %3", "4", "5", "6", "7", "8", "9", WGMMA_D4(0))
WGMMA(16, "%0, %1, %2, %3, %4, %5, %6, %7", "8", "9", "10", "11", "12", "13", WGMMA_D8(0))
WGMMA(32, WGMMA_TEN("") ", %10, %11, %12, %13, %14, %15", "16", "17", "18", "19", "20", "21", WGMMA_D16(0))
WGMMA(64, WGMMA_TEN("") ", " WGMMA_TEN("1") ", " WGMMA_TEN("2") ", %30, %31", "32", "33", "34", "35", "36", "37", WGMMA_D32(0))
WGMMA(128, WGMMA_TEN("") ", " WGMMA_TEN("1") ", " WGMMA_TEN("2") ", " WGMMA_TEN("3") ", " WGMMA_TEN("4") ", " WGMMA_TEN("5")
      ", %60, %61, %62, %63", "64", "65", "66", "67", "68", "69", WGMMA_D64(0))
WGMMA(256, WGMMA_TEN("") ", " WGMMA_TEN("1") ", " WGMMA_TEN("2") ", " WGMMA_TEN("3") ", " WGMMA_TEN("4") ", " WGMMA_TEN("5")
      ", " WGMMA_TEN("6") ", " WGMMA_TEN("7") ", " WGMMA_TEN("8") ", " WGMMA_TEN("9") ", " WGMMA_TEN("10") ", " WGMMA_TEN("11")
      ", %120, %121, %122, %123, %124, %125, %126, %127", "128", "129", "130", "131", "132", "133", WGMMA_D64(0), WGMMA_D64(64))
#undef WGMMA

#endif

// The same on both sides: the host reads it bit by bit.
DEVICE TileDescriptor tile_descriptor(const void *tile) {
    // Address / 16 in bits 0 to 13; 1024 bytes / 16 between atoms in bits 32 to 45; 128-byte swizzle is 1 in bits 62 and 63.
    return {(shared_address(tile) & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62};
}
DEVICE TileDescriptor tile_step(TileDescriptor tile, u32 step) { return {tile.bits + 2 * step}; }
