// ptx.cuh on the host: ldmatrix and mma, after the tables of the PTX manual.
#pragma once

namespace host {

struct LoadMatrix {
    u32 *d;
    const u8 *row;
};

template <u32 MATRICES, bool TRANSPOSED>
inline void load_matrix(const char *what, u32 *d, const void *row) {
    if (lane_index() < 8 * MATRICES) {
        check_aligned(row, 16, what);
        check_shared(row, 16, what);
    }
    LoadMatrix mine{d, static_cast<const u8 *>(row)};
    meet(what, &mine, [](void **operands) {
        const auto at = [operands](u32 lane) { return static_cast<LoadMatrix *>(operands[lane]); };
        for (u32 m = 0; m < MATRICES; m++) {
            u16 matrix[8][8];
            for (u32 r = 0; r < 8; r++) std::memcpy(matrix[r], at(8 * m + r)->row, 16);
            for (u32 l = 0; l < 32; l++) {
                const u32 g = l / 4, t = l % 4;
                const u16 low = TRANSPOSED ? matrix[2 * t][g] : matrix[g][2 * t];
                const u16 high = TRANSPOSED ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
                at(l)->d[m] = low | static_cast<u32>(high) << 16;
            }
        }
    });
}

struct Mma {
    void *d;
    const u32 *a, *b;
};

inline Mma *mma_at(void **operands, u32 lane) { return static_cast<Mma *>(operands[lane]); }

// d[16][8] += a[16][K] b[K][8] in unsigned BITS-bit integers; a fragment word holds 32 / BITS numbers along K.
template <u32 BITS>
inline void mma_integers(void **operands) {
    constexpr u32 PER_WORD = 32 / BITS, K = 8 * PER_WORD;
    u8 a[16][K], b[8][K];
    const auto spread = [](u8 *to, u32 word) {
        for (u32 i = 0; i < PER_WORD; i++) to[i] = static_cast<u8>(word >> (BITS * i) & ((1u << BITS) - 1));
    };
    for (u32 l = 0; l < 32; l++) {
        const u32 g = l / 4, t = l % 4;
        const Mma *lane = mma_at(operands, l);
        for (u32 r = 0; r < 4; r++) spread(&a[g + 8 * (r % 2)][4 * PER_WORD * (r / 2) + PER_WORD * t], lane->a[r]);
        for (u32 r = 0; r < 2; r++) spread(&b[g][4 * PER_WORD * r + PER_WORD * t], lane->b[r]);
    }
    for (u32 l = 0; l < 32; l++) {
        const u32 g = l / 4, t = l % 4;
        i32 *d = static_cast<i32 *>(mma_at(operands, l)->d);
        for (u32 i = 0; i < 4; i++) {
            const u8 *x = a[g + 8 * (i / 2)], *y = b[2 * t + i % 2];
            i32 sum = 0;
            for (u32 k = 0; k < K; k++) sum += static_cast<i32>(x[k]) * static_cast<i32>(y[k]);
            d[i] = static_cast<i32>(static_cast<u32>(d[i]) + static_cast<u32>(sum));
        }
    }
}

// d[16][8] += a[16][16] b[16][8], products exact, sums in f32 in the order of k. The device's order is its own.
template <f32 (*WIDEN)(u16)>
inline void mma_halves(void **operands) {
    f32 a[16][16], b[8][16];
    const auto spread = [](f32 *to, u32 word) {
        to[0] = WIDEN(static_cast<u16>(word));
        to[1] = WIDEN(static_cast<u16>(word >> 16));
    };
    for (u32 l = 0; l < 32; l++) {
        const u32 g = l / 4, t = l % 4;
        const Mma *lane = mma_at(operands, l);
        for (u32 r = 0; r < 4; r++) spread(&a[g + 8 * (r % 2)][8 * (r / 2) + 2 * t], lane->a[r]);
        for (u32 r = 0; r < 2; r++) spread(&b[g][8 * r + 2 * t], lane->b[r]);
    }
    for (u32 l = 0; l < 32; l++) {
        const u32 g = l / 4, t = l % 4;
        f32 *d = static_cast<f32 *>(mma_at(operands, l)->d);
        for (u32 i = 0; i < 4; i++) {
            for (u32 k = 0; k < 16; k++) d[i] += a[g + 8 * (i / 2)][k] * b[2 * t + i % 2][k];
        }
    }
}

}  // namespace host

DEVICE void load_matrix_x4(u32 (&d)[4], const void *row) { host::load_matrix<4, false>("load_matrix_x4", d, row); }
DEVICE void load_matrix_x4_transposed(u32 (&d)[4], const void *row) {
    host::load_matrix<4, true>("load_matrix_x4_transposed", d, row);
}
DEVICE void load_matrix_x2(u32 (&d)[2], const void *row) { host::load_matrix<2, false>("load_matrix_x2", d, row); }
DEVICE void load_matrix_x2_transposed(u32 (&d)[2], const void *row) {
    host::load_matrix<2, true>("load_matrix_x2_transposed", d, row);
}
DEVICE void mma_u4(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    host::Mma mine{d, a, b};
    host::meet("mma_u4", &mine, host::mma_integers<4>);
}
DEVICE void mma_u8(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    host::Mma mine{d, a, b};
    host::meet("mma_u8", &mine, host::mma_integers<8>);
}
DEVICE void mma_u4_from(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], i32 start) {
    for (i32 &x : d) x = start;
    mma_u4(d, a, b);
}
DEVICE void mma_u8_from(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], i32 start) {
    for (i32 &x : d) x = start;
    mma_u8(d, a, b);
}
DEVICE void mma_f16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    host::Mma mine{d, a, b};
    host::meet("mma_f16", &mine, host::mma_halves<host::half_to_f32>);
}
DEVICE void mma_bf16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    host::Mma mine{d, a, b};
    host::meet("mma_bf16", &mine, host::mma_halves<host::bf16_to_f32>);
}
DEVICE u32 transpose_matrix(u32 row) {
    host::meet("transpose_matrix", &row, [](void **operands) {
        u16 matrix[8][8];
        const auto word = [operands](u32 lane) { return static_cast<u32 *>(operands[lane]); };
        for (u32 l = 0; l < 32; l++) std::memcpy(&matrix[l / 4][2 * (l % 4)], word(l), 4);
        for (u32 l = 0; l < 32; l++) {
            const u32 g = l / 4, t = l % 4;
            *word(l) = matrix[2 * t][g] | static_cast<u32>(matrix[2 * t + 1][g]) << 16;
        }
    });
    return row;
}
