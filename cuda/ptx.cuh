// Every instruction and built-in that the kernels use, by name. tests/cuda/host/host.cuh has the same functions in plain C++.
// Fragment layouts are those of the PTX manual, chapter "Warp-level matrix instructions"; tests/cuda_layouts.rs proves them.
#pragma once

#include "types.cuh"

#if defined(DUQUANT_HOST)
#include "host.cuh"
#else

#define DEVICE __device__ __forceinline__
#define METHOD __device__ __forceinline__
#define CONSTANT __constant__ const

// --- where a thread is ---------------------------------------------------------------------------------------------------

DEVICE u32 thread_index() { return threadIdx.x; }
DEVICE u32 block_threads() { return blockDim.x; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
DEVICE u32 grid_x() { return gridDim.x; }
DEVICE u32 grid_y() { return gridDim.y; }
DEVICE u32 grid_z() { return gridDim.z; }
DEVICE u32 lane_index() { return threadIdx.x % 32; }
// The same in all lanes, and known to be by the compiler. A shuffle: all lanes must come here.
DEVICE u32 warp_index() { return __shfl_sync(0xffffffff, threadIdx.x / 32, 0); }

// The block's shared memory, at a multiple of 1024.
DEVICE u8 *shared_memory() {
    extern __shared__ __align__(1024) u8 dynamic_shared_memory[];
    return dynamic_shared_memory;
}
DEVICE u32 shared_address(const void *pointer) { return static_cast<u32>(__cvta_generic_to_shared(pointer)); }

// --- meeting ---------------------------------------------------------------------------------------------------------------

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
// Barriers 1 to 15 among `threads` threads, whole warps.
DEVICE void sync_named(u32 barrier, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }
DEVICE void arrive_named(u32 barrier, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
// Whether the predicate holds in any thread of the block.
DEVICE bool sync_block_or(bool predicate) { return __syncthreads_or(predicate); }

template <class T>
DEVICE T shuffle(T value, u32 lane) {
    return __shfl_sync(0xffffffff, value, lane);
}
template <class T>
DEVICE T shuffle_xor(T value, u32 mask) {
    return __shfl_xor_sync(0xffffffff, value, mask);
}
DEVICE i32 reduce_add(i32 value) { return __reduce_add_sync(0xffffffff, value); }
DEVICE u32 ballot(bool predicate) { return __ballot_sync(0xffffffff, predicate); }

// --- global memory ---------------------------------------------------------------------------------------------------------

DEVICE Quad load_16(const void *from) {
    Quad q;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w) : "l"(from));
    return q;
}
// For what is read once and not written by the kernel, as weights in decode: it passes the first-level cache by.
DEVICE Quad load_16_once(const void *from) {
    Quad q;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w)
                 : "l"(from));
    return q;
}
// For what the kernel does not write and many blocks read.
DEVICE Quad load_16_constant(const void *from) {
    Quad q;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w) : "l"(from));
    return q;
}
DEVICE Pair load_8(const void *from) {
    Pair p;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(p.x), "=r"(p.y) : "l"(from));
    return p;
}
DEVICE void store_16(void *to, Quad q) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(q.x), "r"(q.y), "r"(q.z), "r"(q.w) : "memory");
}
DEVICE void store_8(void *to, Pair p) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(p.x), "r"(p.y) : "memory");
}
// Reads what other blocks wrote in this launch, past the first-level cache.
DEVICE i32 load_fresh(const i32 *from) {
    i32 value;
    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
DEVICE f32 load_fresh(const f32 *from) { return __int_as_float(load_fresh(reinterpret_cast<const i32 *>(from))); }
DEVICE Quad load_16_fresh(const void *from) {
    Quad q;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w)
                 : "l"(from)
                 : "memory");
    return q;
}

// --- between blocks: a block may count itself and the last one may finish; it must never wait for another -------------------

DEVICE i32 atomic_add(i32 *to, i32 value) { return atomicAdd(to, value); }
DEVICE u32 atomic_add(u32 *to, u32 value) { return atomicAdd(to, value); }
// Without a result, so that the cache does the work.
DEVICE void reduce_to(i32 *to, i32 value) {
    asm volatile("red.global.add.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
DEVICE void fence_device() { __threadfence(); }
DEVICE u64 atomic_max(u64 *to, u64 value) { return atomicMax(to, value); }

// --- asynchronous copies: shared memory holds nothing until the wait, and others see it after a barrier ---------------------

DEVICE void copy_async_16(void *shared, const void *global) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
// The first `bytes` (0 to 16) from global memory, zeros behind them.
DEVICE void copy_async_16_zero(void *shared, const void *global, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}
// Eight bytes, for rows that start at no multiple of 16.
DEVICE void copy_async_8(void *shared, const void *global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the last N committed groups of this thread are there.
template <int N>
DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// --- matrices ---------------------------------------------------------------------------------------------------------------

// Four 8 x 8 matrices of 16 bits; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_matrix_x4(u32 (&d)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_matrix_x4_transposed(u32 (&d)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_matrix_x2(u32 (&d)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_matrix_x2_transposed(u32 (&d)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// d += a b in i32: a is 16 x 64 and b 64 x 8, unsigned 4-bit.
DEVICE void mma_u4(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k64.row.col.s32.u4.u4.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d = a b + start, which saves setting d.
DEVICE void mma_u4_from(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], i32 start) {
    asm volatile("mma.sync.aligned.m16n8k64.row.col.s32.u4.u4.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%10, %10, %10, %10};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(start));
}
// d += a b in i32: a is 16 x 32 and b 32 x 8, unsigned 8-bit.
DEVICE void mma_u8(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_u8_from(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], i32 start) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%10, %10, %10, %10};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(start));
}
// d += a b in f32: a is 16 x 16 and b 16 x 8, half precision.
DEVICE void mma_f16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_bf16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// An 8 x 8 matrix of 16 bits, held as one register of a fragment, turned.
DEVICE u32 transpose_matrix(u32 row) {
    u32 column;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(column) : "r"(row));
    return column;
}

// --- arithmetic: nothing is contracted (--fmad=false), division and square root are IEEE's ----------------------------------

DEVICE f32 to_f32(f32 x) { return x; }
DEVICE f32 to_f32(f16 x) {
    f32 y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
DEVICE f32 to_f32(bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }
template <class T>
DEVICE T from_f32(f32 x);
template <>
DEVICE f32 from_f32<f32>(f32 x) {
    return x;
}
template <>
DEVICE f16 from_f32<f16>(f32 x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <>
DEVICE bf16 from_f32<bf16>(f32 x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
// Two halves in a word, the first below.
DEVICE u32 pack_f16(f32 low, f32 high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
DEVICE u32 pack_bf16(f32 low, f32 high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
// Lane by lane on two halves: a b + c, a + b, a - b, a b, rounded once.
DEVICE u32 fma_f16x2(u32 a, u32 b, u32 c) {
    u32 y;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
}
DEVICE u32 add_f16x2(u32 a, u32 b) {
    u32 y;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
DEVICE u32 sub_f16x2(u32 a, u32 b) {
    u32 y;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
DEVICE u32 mul_f16x2(u32 a, u32 b) {
    u32 y;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
// Lane by lane the smaller and the larger half; a NaN stays one.
DEVICE u32 minimum_nan_f16x2(u32 a, u32 b) {
    u32 y;
    asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
DEVICE u32 maximum_nan_f16x2(u32 a, u32 b) {
    u32 y;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}

DEVICE f32 fused(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
DEVICE f32 round_even(f32 x) { return rintf(x); }
DEVICE i32 round_to_i32(f32 x) { return __float2int_rn(x); }
DEVICE f32 square_root(f32 x) { return __fsqrt_rn(x); }
// e^x and 2^x to a few ULP; 2^-inf is 0.
DEVICE f32 exponential(f32 x) { return __expf(x); }
DEVICE f32 exponential_2(f32 x) { return exp2f(x); }
// One instruction each, to about 2^-22: 2^x, whose results below 2^-126 are 0, and log2 x and 1 / x of a normal number.
DEVICE f32 exponential_2_flush(f32 x) {
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE f32 logarithm_2(f32 x) {
    f32 y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE f32 reciprocal(f32 x) {
    f32 y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// As IEEE's minimumNumber and maximumNumber: a NaN gives the other operand.
DEVICE f32 minimum(f32 a, f32 b) { return fminf(a, b); }
DEVICE f32 maximum(f32 a, f32 b) { return fmaxf(a, b); }
DEVICE bool is_finite(f32 x) { return (__float_as_uint(x) & 0x7f800000) != 0x7f800000; }
DEVICE u32 bits_of(f32 x) { return __float_as_uint(x); }
DEVICE f32 f32_of(u32 x) { return __uint_as_float(x); }
// Bytes of b:a (a is bytes 0 to 3) chosen by the nibbles of the selector.
DEVICE u32 permute_bytes(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }
DEVICE u32 popcount(u32 x) { return __popc(x); }
// sum plus the four bytes of x.
DEVICE u32 sum_bytes(u32 x, u32 sum) { return __dp4a(x, 0x01010101u, sum); }
// Bits below the lowest that is set; of a number that is not 0.
DEVICE u32 trailing_zeros(u32 x) { return static_cast<u32>(__ffs(static_cast<i32>(x)) - 1); }

#endif
