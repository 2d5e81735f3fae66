// ptx.cuh on the host: places, meetings, memory, asynchronous copies and arithmetic.
#pragma once

DEVICE u32 thread_index() { return host::block->current->thread; }
DEVICE u32 block_threads() { return host::block->launch->block; }
DEVICE u32 block_x() { return host::block->index[0]; }
DEVICE u32 block_y() { return host::block->index[1]; }
DEVICE u32 block_z() { return host::block->index[2]; }
DEVICE u32 grid_x() { return host::block->launch->grid[0]; }
DEVICE u32 grid_y() { return host::block->launch->grid[1]; }
DEVICE u32 grid_z() { return host::block->launch->grid[2]; }
DEVICE u32 lane_index() { return thread_index() % 32; }
DEVICE u8 *shared_memory() { return host::block->shared; }
// The offset: distinct for distinct bytes, as on the device.
DEVICE u32 shared_address(const void *pointer) {
    return static_cast<u32>(static_cast<const u8 *>(pointer) - host::block->shared);
}

DEVICE void barrier_wait(u32 index, u32 threads) {
    host::Barrier &barrier = host::block->barriers[index];
    const u64 seen = barrier.epoch;
    host::arrive(barrier, threads, 1);
    if (barrier.epoch == seen) host::wait_while(&barrier.epoch, seen);
    host::block->current->fenced = false;
}
DEVICE void sync_block() { barrier_wait(0, block_threads()); }
DEVICE bool sync_block_or(bool predicate) {
    host::block->barriers[0].any |= predicate;
    barrier_wait(0, block_threads());
    return host::block->barriers[0].result;
}
DEVICE void sync_named(u32 barrier, u32 threads) { barrier_wait(barrier, threads); }
DEVICE void arrive_named(u32 barrier, u32 threads) { host::arrive(host::block->barriers[barrier], threads, 1); }
DEVICE void sync_warp() {
    host::meet("sync_warp", nullptr, [](void **) {});
}

namespace host {
template <class T>
struct Shuffled {
    T value;
    u32 from;
    T result;
};
template <class T>
inline T exchange(const char *what, T value, u32 from) {
    Shuffled<T> mine{value, from % 32, value};
    meet(what, &mine, [](void **operands) {
        for (u32 l = 0; l < 32; l++) {
            auto *to = static_cast<Shuffled<T> *>(operands[l]);
            to->result = static_cast<Shuffled<T> *>(operands[to->from])->value;
        }
    });
    return mine.result;
}
}  // namespace host

template <class T>
DEVICE T shuffle(T value, u32 lane) {
    return host::exchange("shuffle", value, lane);
}
template <class T>
DEVICE T shuffle_xor(T value, u32 mask) {
    return host::exchange("shuffle_xor", value, lane_index() ^ mask);
}
// A shuffle on the device, and so a mistake where some lanes are elsewhere.
DEVICE u32 warp_index() { return host::exchange("warp_index", thread_index() / 32, 0); }
DEVICE i32 reduce_add(i32 value) {
    host::meet("reduce_add", &value, [](void **operands) {
        u32 sum = 0;
        for (u32 l = 0; l < 32; l++) sum += static_cast<u32>(*static_cast<i32 *>(operands[l]));
        for (u32 l = 0; l < 32; l++) *static_cast<i32 *>(operands[l]) = static_cast<i32>(sum);
    });
    return value;
}
DEVICE u32 ballot(bool predicate) {
    u32 value = predicate;
    host::meet("ballot", &value, [](void **operands) {
        u32 mask = 0;
        for (u32 l = 0; l < 32; l++) mask |= *static_cast<u32 *>(operands[l]) << l;
        for (u32 l = 0; l < 32; l++) *static_cast<u32 *>(operands[l]) = mask;
    });
    return value;
}

DEVICE Quad load_16(const void *from) {
    host::check_aligned(from, 16, "a 16-byte load");
    Quad q;
    std::memcpy(&q, from, 16);
    return q;
}
DEVICE Quad load_16_once(const void *from) { return load_16(from); }
DEVICE Quad load_16_constant(const void *from) { return load_16(from); }
DEVICE Quad load_16_fresh(const void *from) { return load_16(from); }
DEVICE Pair load_8(const void *from) {
    host::check_aligned(from, 8, "an 8-byte load");
    Pair p;
    std::memcpy(&p, from, 8);
    return p;
}
DEVICE void store_16(void *to, Quad q) {
    host::check_aligned(to, 16, "a 16-byte store");
    std::memcpy(to, &q, 16);
}
DEVICE void store_8(void *to, Pair p) {
    host::check_aligned(to, 8, "an 8-byte store");
    std::memcpy(to, &p, 8);
}
DEVICE i32 load_fresh(const i32 *from) {
    if (host::block->counted != nullptr) host::fail("it reads others' sums before the thread that counted has called fence_device");
    return *from;
}
DEVICE f32 load_fresh(const f32 *from) { return *from; }
DEVICE i32 atomic_add(i32 *to, i32 value) {
    const i32 old = *to;
    *to = static_cast<i32>(static_cast<u32>(old) + static_cast<u32>(value));
    return old;
}
// Counts, among others the blocks that gave their sums. By the rules of PTX those of other threads are there before the count only
// if the thread that counts has called fence_device behind the barrier, and others' sums for its block only if it does so again.
DEVICE u32 atomic_add(u32 *to, u32 value) {
    if (host::block->reductions > 0) {
        if (!host::block->current->fenced) host::fail("it counts without fence_device between the last barrier and the count");
        host::block->counted = host::block->current;
    }
    const u32 old = *to;
    *to = old + value;
    return old;
}
DEVICE void reduce_to(i32 *to, i32 value) {
    host::block->reductions++;
    host::block->current->fenced = false;
    atomic_add(to, value);
}
DEVICE void fence_device() {
    host::block->current->fenced = true;
    if (host::block->counted == host::block->current) host::block->counted = nullptr;
}
DEVICE u64 atomic_max(u64 *to, u64 value) {
    const u64 old = *to;
    *to = old < value ? value : old;
    return old;
}

DEVICE void copy_async_16_zero(void *shared, const void *global, u32 bytes) {
    host::check_aligned(shared, 16, "an asynchronous copy to");
    host::check_shared(shared, 16, "an asynchronous copy");
    if (bytes > 0) host::check_aligned(global, 16, "an asynchronous copy from");
    std::memset(shared, 0xa5, 16);
    host::block->current->issued.push_back({static_cast<u8 *>(shared), static_cast<const u8 *>(global), bytes, 16});
}
DEVICE void copy_async_16(void *shared, const void *global) { copy_async_16_zero(shared, global, 16); }
DEVICE void copy_async_8(void *shared, const void *global) {
    host::check_aligned(shared, 8, "copy_async_8 to shared memory");
    host::check_aligned(global, 8, "copy_async_8");
    host::check_shared(shared, 8, "copy_async_8");
    std::memset(shared, 0xa5, 8);
    host::block->current->issued.push_back({static_cast<u8 *>(shared), static_cast<const u8 *>(global), 8, 8});
}
DEVICE void copy_async_commit() {
    host::Fiber *me = host::block->current;
    me->committed.push_back(std::move(me->issued));
    me->issued.clear();
}
template <int N>
DEVICE void copy_async_wait() {
    auto &groups = host::block->current->committed;
    while (groups.size() > N) {
        for (const host::Copy &copy : groups.front()) {
            std::memcpy(copy.to, copy.from, copy.bytes);
            std::memset(copy.to + copy.bytes, 0, copy.room - copy.bytes);
        }
        groups.erase(groups.begin());
    }
}

DEVICE f32 to_f32(f32 x) { return x; }
DEVICE f32 to_f32(f16 x) { return host::half_to_f32(x.bits); }
DEVICE f32 to_f32(bf16 x) { return host::bf16_to_f32(x.bits); }
template <class T>
T from_f32(f32 x);
template <>
inline f32 from_f32<f32>(f32 x) {
    return x;
}
template <>
inline f16 from_f32<f16>(f32 x) {
    return {host::half_of_f32(x)};
}
template <>
inline bf16 from_f32<bf16>(f32 x) {
    return {host::bf16_of_f32(x)};
}
DEVICE u32 pack_f16(f32 low, f32 high) {
    return host::half_of_f32(low) | static_cast<u32>(host::half_of_f32(high)) << 16;
}
DEVICE u32 pack_bf16(f32 low, f32 high) {
    return host::bf16_of_f32(low) | static_cast<u32>(host::bf16_of_f32(high)) << 16;
}

namespace host {
// Half products and sums are exact in f64, so that one rounding is left.
template <class F>
inline u32 on_halves(u32 a, u32 b, u32 c, F f) {
    u32 y = 0;
    for (u32 shift = 0; shift < 32; shift += 16) {
        const auto wide = [shift](u32 x) { return static_cast<double>(cast<_Float16>(static_cast<u16>(x >> shift))); };
        y |= static_cast<u32>(cast<u16>(static_cast<_Float16>(f(wide(a), wide(b), wide(c))))) << shift;
    }
    return y;
}
}  // namespace host

DEVICE u32 fma_f16x2(u32 a, u32 b, u32 c) {
    return host::on_halves(a, b, c, [](double x, double y, double z) { return x * y + z; });
}
DEVICE u32 add_f16x2(u32 a, u32 b) {
    return host::on_halves(a, b, 0, [](double x, double y, double) { return x + y; });
}
DEVICE u32 sub_f16x2(u32 a, u32 b) {
    return host::on_halves(a, b, 0, [](double x, double y, double) { return x - y; });
}
DEVICE u32 mul_f16x2(u32 a, u32 b) {
    return host::on_halves(a, b, 0, [](double x, double y, double) { return x * y; });
}
namespace host {
inline u32 choose_halves(u32 a, u32 b, bool larger) {
    u32 y = 0;
    for (u32 shift = 0; shift < 32; shift += 16) {
        const u16 p = static_cast<u16>(a >> shift), q = static_cast<u16>(b >> shift);
        const f32 x = half_to_f32(p), z = half_to_f32(q);
        const u16 chosen = std::isnan(x) || std::isnan(z) ? 0x7fff : (larger ? x > z : x < z) ? p : q;
        y |= static_cast<u32>(chosen) << shift;
    }
    return y;
}
}  // namespace host

DEVICE u32 minimum_nan_f16x2(u32 a, u32 b) { return host::choose_halves(a, b, false); }
DEVICE u32 maximum_nan_f16x2(u32 a, u32 b) { return host::choose_halves(a, b, true); }
DEVICE f32 fused(f32 a, f32 b, f32 c) { return std::fmaf(a, b, c); }
DEVICE f32 round_even(f32 x) { return std::nearbyintf(x); }
DEVICE i32 round_to_i32(f32 x) {
    if (std::isnan(x)) return 0;
    if (x >= 2147483648.0f) return INT32_MAX;
    if (x <= -2147483648.0f) return INT32_MIN;
    return static_cast<i32>(std::nearbyintf(x));
}
DEVICE f32 square_root(f32 x) { return std::sqrt(x); }
DEVICE f32 exponential(f32 x) { return std::exp(x); }
DEVICE f32 exponential_2(f32 x) { return std::exp2(x); }
DEVICE f32 exponential_2_flush(f32 x) {
    const f32 y = std::exp2(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}
DEVICE f32 logarithm_2(f32 x) { return std::log2(x); }
DEVICE f32 reciprocal(f32 x) { return 1.0f / x; }
DEVICE f32 minimum(f32 a, f32 b) { return std::fmin(a, b); }
DEVICE f32 maximum(f32 a, f32 b) { return std::fmax(a, b); }
DEVICE bool is_finite(f32 x) { return std::isfinite(x); }
DEVICE u32 bits_of(f32 x) { return host::cast<u32>(x); }
DEVICE f32 f32_of(u32 x) { return host::cast<f32>(x); }
DEVICE u32 permute_bytes(u32 a, u32 b, u32 selector) {
    const u64 both = a | static_cast<u64>(b) << 32;
    u32 y = 0;
    for (u32 i = 0; i < 4; i++) {
        const u32 nibble = selector >> (4 * i) & 15;
        u32 byte = static_cast<u32>(both >> (8 * (nibble & 7))) & 255;
        if (nibble & 8) byte = byte & 128 ? 255 : 0;
        y |= byte << (8 * i);
    }
    return y;
}
DEVICE u32 popcount(u32 x) { return static_cast<u32>(__builtin_popcount(x)); }
DEVICE u32 sum_bytes(u32 x, u32 sum) { return sum + (x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24); }
DEVICE u32 trailing_zeros(u32 x) { return static_cast<u32>(__builtin_ctz(x)); }
