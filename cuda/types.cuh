// Plain types that the kernels share with src/kernels/cuda: no header of CUDA's or of the C library is included anywhere, so
// that NVRTC alone compiles them.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;
using f32 = float;

// Sixteen and eight bytes that travel as one load or store.
struct alignas(16) Quad {
    u32 x, y, z, w;
};
struct alignas(8) Pair {
    u32 x, y;
};

// Half and bfloat16 as they lie in memory; ptx.cuh converts.
struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

// Dtype::define of dtype.rs.
#define DTYPE_F32 0
#define DTYPE_F16 1
#define DTYPE_BF16 2

template <int D>
struct DtypeOf;
template <>
struct DtypeOf<DTYPE_F32> {
    using type = f32;
};
template <>
struct DtypeOf<DTYPE_F16> {
    using type = f16;
};
template <>
struct DtypeOf<DTYPE_BF16> {
    using type = bf16;
};

// TokenForm::define of tokens.rs, which draws the layouts.
#define FORM_FRAGMENTS4 0
#define FORM_FRAGMENTS8 1
#define FORM_TILES8 2

// A quantized token as transform_quantize leaves it and gemm_w4a4 reads it: one 16-byte load.
struct alignas(16) TokenParams {
    f32 scale;
    i32 zero_point;
    i32 row_sum;
    i32 unused;
};

// An output channel of a packed weight.
struct alignas(16) ChannelParams {
    f32 scale;
    i32 zero_point;
    i32 offset;  // c[n] = sum_k qw[n, k] - K zw[n], with the true K
    f32 bias;
};

template <class T>
constexpr T divide_up(T a, T b) {
    return (a + b - 1) / b;
}

template <class T>
constexpr T smaller(T a, T b) {
    return b < a ? b : a;
}

template <class T>
constexpr T larger(T a, T b) {
    return a < b ? b : a;
}
