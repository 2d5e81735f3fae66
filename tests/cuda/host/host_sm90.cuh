// ptx_sm90.cuh on the host: barriers that count bytes, bulk copies, wgmma, after the PTX manual.
//
// A bulk copy spoils its target when it is issued and lands only when a thread waits on its barrier. A wgmma reads A, shared memory
// and the accumulators only at the wgmma_wait that covers it, and only when all four warps have issued it, so that whatever is
// overwritten or read too early shows.
#pragma once

#include <deque>

namespace host {

struct Bulk {
    u8 *to;
    const u8 *from;
    u32 bytes;
};

struct SharedBarrier {
    u32 arrivals = 0, pending = 0, parity = 0;
    // Who made it, when, and whether barrier_init_fence followed: others may use it once the block has met.
    u32 maker = 0;
    u64 made = 0;
    bool fenced = false;
    i64 bytes = 0;
    u64 epoch = 0;
    std::vector<Bulk> copies;

    void settle() {
        if (pending != 0 || bytes != 0) return;
        parity ^= 1;
        pending = arrivals;
        epoch++;
    }
    void arrive() {
        if (pending == 0) fail("a barrier of %u arrivals got one more", arrivals);
        pending--;
        settle();
    }
    void land() {
        for (const Bulk &copy : copies) {
            std::memcpy(copy.to, copy.from, copy.bytes);
            bytes -= copy.bytes;
        }
        copies.clear();
        if (bytes < 0) fail("bulk copies brought %lld bytes more than expected", static_cast<long long>(-bytes));
        settle();
    }
};

// One wgmma of one warp: what its lanes gave.
struct Wgmma {
    u32 tokens;
    u64 tile;
    bool add;
    i32 *d[32];
    const u32 *a[32];

    bool same(const Wgmma &other) const { return tokens == other.tokens && tile == other.tile && add == other.add; }
};

struct WgmmaQueue {
    bool fenced = false;
    u64 issued = 0, committed = 0, finished = 0;
    std::vector<Wgmma> open;
    std::deque<std::vector<Wgmma>> groups;  // from `finished` on
};

struct Warpgroup {
    u64 epoch = 0;
    WgmmaQueue warps[4];
    std::deque<Wgmma> log;  // what the first warp to get there issued
};

struct Sm90 {
    std::map<const u8 *, SharedBarrier> barriers;
    std::vector<Warpgroup> warpgroups;
    // Registers of each thread of a warp, and what warps gave back for others to take.
    std::vector<u32> registers;
    u32 given = 0;
    u64 given_epoch = 0;

    // What a block may not leave behind: a bulk copy would land in another block's shared memory.
    const char *unfinished() const {
        for (const auto &barrier : barriers) {
            if (!barrier.second.copies.empty()) return "it ends with bulk copies that nobody waited for";
        }
        for (const Warpgroup &group : warpgroups) {
            for (const WgmmaQueue &queue : group.warps) {
                if (!queue.open.empty() || !queue.groups.empty()) return "it ends with a wgmma that nobody waited for";
            }
        }
        return nullptr;
    }
};

inline Sm90 &sm90() {
    static const char key = 0;
    std::shared_ptr<void> &held = block->extra[&key];
    if (!held) {
        auto made = std::make_shared<Sm90>();
        const u32 threads = block->launch->block;
        made->warpgroups.resize((threads + 127) / 128);
        // As __launch_bounds__ with one block a multiprocessor has it.
        made->registers.assign(threads / 32, std::min(65536 / threads / 8 * 8, 248u));
        held = made;
        block->at_end.push_back([made] { return made->unfinished(); });
    }
    return *static_cast<Sm90 *>(held.get());
}

inline SharedBarrier &shared_barrier(u64 *at) {
    auto &barriers = sm90().barriers;
    const auto found = barriers.find(reinterpret_cast<const u8 *>(at));
    if (found == barriers.end()) fail("a barrier at byte %u of shared memory that is not initialised", shared_address(at));
    const SharedBarrier &barrier = found->second;
    if (block->current->thread != barrier.maker && (!barrier.fenced || block->barriers[0].epoch == barrier.made)) {
        fail("a barrier is used before barrier_init_fence and a meeting of the block");
    }
    return found->second;
}

inline Warpgroup &warpgroup() {
    const u32 index = block->current->thread / 128;
    if (128 * (index + 1) > block->launch->block) fail("a warpgroup of fewer than four warps");
    return sm90().warpgroups[index];
}
inline WgmmaQueue &wgmma_queue() { return warpgroup().warps[block->current->thread / 32 % 4]; }

// d[16][TOKENS] (+)= a[16][32] b[TOKENS][32], b by its descriptor.
inline void wgmma_run(const Wgmma &work) {
    u8 a[16][32];
    for (u32 l = 0; l < 32; l++) {
        const u32 g = l / 4, t = l % 4;
        for (u32 r = 0; r < 4; r++) std::memcpy(&a[g + 8 * (r % 2)][16 * (r / 2) + 4 * t], &work.a[l][r], 4);
    }
    const u32 start = static_cast<u32>(work.tile & 0x3fff) << 4, stride = static_cast<u32>(work.tile >> 32 & 0x3fff) << 4;
    // Swizzle in bits 62 and 63, base offset in 49 to 51; nothing may be set between the fields.
    if (work.tile >> 62 != 1 || (work.tile >> 49 & 7) != 0) fail("a wgmma descriptor %llx without 128-byte swizzle", work.tile);
    if ((work.tile & 0x3ff1c000c000c000) != 0) fail("a wgmma descriptor %llx with stray bits", work.tile);
    if (start % 1024 >= 128 || start % 32 != 0) fail("a wgmma tile at byte %u, which is no k32 step of an atom", start);
    if (work.tokens > 8 && stride != 1024) fail("a wgmma tile whose atoms are %u bytes apart", stride);
    for (u32 token = 0; token < work.tokens; token++) {
        u8 b[32];
        for (u32 piece = 0; piece < 2; piece++) {
            u32 address = start + token / 8 * stride + token % 8 * 128 + 16 * piece;
            address ^= (address >> 7 & 7) << 4;
            check_shared(block->shared + address, 16, "wgmma");
            std::memcpy(b + 16 * piece, block->shared + address, 16);
        }
        for (u32 row = 0; row < 16; row++) {
            i32 sum = 0;
            for (u32 k = 0; k < 32; k++) sum += static_cast<i32>(a[row][k]) * static_cast<i32>(b[k]);
            i32 &d = work.d[4 * (row % 8) + token % 8 / 2][token / 8 * 4 + row / 8 * 2 + token % 2];
            d = static_cast<i32>((work.add ? static_cast<u32>(d) : 0u) + static_cast<u32>(sum));
        }
    }
}

inline void wgmma_issue(u32 tokens, i32 *d, const u32 *a, u64 tile, bool add) {
    struct Operand {
        Wgmma work;
        i32 *d;
        const u32 *a;
    };
    Operand mine{{tokens, tile, add, {}, {}}, d, a};
    meet("wgmma", &mine, [](void **operands) {
        Wgmma work = static_cast<Operand *>(operands[0])->work;
        for (u32 l = 0; l < 32; l++) {
            const auto *lane = static_cast<Operand *>(operands[l]);
            if (!lane->work.same(work)) fail("the lanes of a warp gave a wgmma different tiles");
            work.d[l] = lane->d;
            work.a[l] = lane->a;
        }
        WgmmaQueue &queue = wgmma_queue();
        if (!queue.fenced) fail("a wgmma without wgmma_fence after the last commit");
        auto &log = warpgroup().log;
        if (queue.issued == log.size()) {
            log.push_back(work);
        } else if (!log[queue.issued].same(work)) {
            fail("the warps of a warpgroup gave a wgmma different tiles");
        }
        queue.issued++;
        queue.open.push_back(work);
    });
}

}  // namespace host

DEVICE void barrier_init(u64 *barrier, u32 arrivals) {
    host::check_aligned(barrier, 8, "a barrier");
    host::check_shared(barrier, 8, "a barrier");
    host::SharedBarrier made;
    made.arrivals = made.pending = arrivals;
    made.maker = thread_index();
    made.made = host::block->barriers[0].epoch;
    host::sm90().barriers[reinterpret_cast<const u8 *>(barrier)] = made;
}
DEVICE void barrier_init_fence() {
    for (auto &barrier : host::sm90().barriers) barrier.second.fenced |= barrier.second.maker == thread_index();
}
DEVICE void barrier_arrive(u64 *barrier) { host::shared_barrier(barrier).arrive(); }
DEVICE void barrier_arrive_expect(u64 *barrier, u32 bytes) {
    host::SharedBarrier &b = host::shared_barrier(barrier);
    b.bytes += bytes;
    b.arrive();
}
DEVICE void barrier_wait_parity(u64 *barrier, u32 parity) {
    host::SharedBarrier &b = host::shared_barrier(barrier);
    while (b.parity == parity) {
        if (!b.copies.empty()) b.land();
        if (b.parity == parity) host::wait_while(&b.epoch, b.epoch);
    }
}

DEVICE void copy_bulk(void *shared, const void *global, u32 bytes, u64 *barrier) {
    host::check_aligned(shared, 16, "a bulk copy to");
    host::check_aligned(global, 16, "a bulk copy from");
    host::check_shared(shared, bytes, "a bulk copy");
    if (bytes == 0 || bytes % 16 != 0) host::fail("a bulk copy of %u bytes", bytes);
    const u8 *from = static_cast<const u8 *>(shared);
    const auto &barriers = host::sm90().barriers;
    const auto next = barriers.lower_bound(from);
    if (next != barriers.end() && next->first < from + bytes) host::fail("a bulk copy over a barrier");
    std::memset(shared, 0xa5, bytes);
    host::SharedBarrier &b = host::shared_barrier(barrier);
    b.copies.push_back({static_cast<u8 *>(shared), static_cast<const u8 *>(global), bytes});
    // Whoever waits looks again, and lets the copy land.
    b.epoch++;
}
DEVICE void copy_bulk_once(void *shared, const void *global, u32 bytes, u64 *barrier) {
    copy_bulk(shared, global, bytes, barrier);
}

template <u32 N>
DEVICE void registers_give() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256);
    host::meet("registers_give", nullptr, [](void **) {
        host::Sm90 &sm90 = host::sm90();
        u32 &mine = sm90.registers[thread_index() / 32];
        if (N > mine) host::fail("registers_give leaves %u registers of %u", N, mine);
        sm90.given += 32 * (mine - N);
        mine = N;
        sm90.given_epoch++;
    });
}
template <u32 N>
DEVICE void registers_take() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256);
    host::Sm90 &sm90 = host::sm90();
    u32 &mine = sm90.registers[thread_index() / 32];
    host::meet("registers_take", nullptr, [](void **) {});
    // Waits for registers that others give: for ever, where they give too few.
    while (mine != N) {
        if (N < mine) host::fail("registers_take takes %u registers and has %u", N, mine);
        if (sm90.given >= 32 * (N - mine)) {
            sm90.given -= 32 * (N - mine);
            mine = N;
            sm90.given_epoch++;
        } else {
            host::wait_while(&sm90.given_epoch, sm90.given_epoch);
        }
    }
}

DEVICE void wgmma_fence() {
    host::meet("wgmma_fence", nullptr, [](void **) { host::wgmma_queue().fenced = true; });
}
DEVICE void wgmma_commit() {
    host::meet("wgmma_commit", nullptr, [](void **) {
        host::WgmmaQueue &queue = host::wgmma_queue();
        queue.groups.push_back(std::move(queue.open));
        queue.open.clear();
        queue.committed++;
        queue.fenced = false;
        host::warpgroup().epoch++;
    });
}
template <int N>
DEVICE void wgmma_wait() {
    host::Warpgroup &warpgroup = host::warpgroup();
    const u64 committed = host::wgmma_queue().committed;
    const u64 target = committed > N ? committed - N : 0;
    const auto there = [&warpgroup, target] {
        for (const auto &warp : warpgroup.warps) {
            if (warp.committed < target) return false;
        }
        return true;
    };
    while (!there()) host::wait_while(&warpgroup.epoch, warpgroup.epoch);
    host::meet("wgmma_wait", nullptr, [](void **) {
        host::WgmmaQueue &queue = host::wgmma_queue();
        for (; queue.groups.size() > N; queue.groups.pop_front(), queue.finished++) {
            for (const host::Wgmma &work : queue.groups.front()) host::wgmma_run(work);
        }
    });
}
template <u32 COUNT>
DEVICE void wgmma_settle(i32 (&)[COUNT]) {}
template <u32 RESULTS>
DEVICE void wgmma_u8(i32 (&d)[RESULTS], const u32 (&a)[4], TileDescriptor tile, bool add) {
    constexpr u32 TOKENS_OF = 2 * RESULTS;
    static_assert(TOKENS_OF == 8 || TOKENS_OF == 16 || TOKENS_OF == 32 || TOKENS_OF == 64 || TOKENS_OF == 128 || TOKENS_OF == 256);
    host::wgmma_issue(TOKENS_OF, d, a, tile.bits, add);
}
