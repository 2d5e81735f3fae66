//! `gemm_w4a4` against the oracle, for any device and tile.

use super::{STREAM, download, upload};
use crate::oracle::{self, Random};
use duquant::kernels::cpu::QuantizedTokens as HostTokens;
use duquant::kernels::cuda::{
    Buffer, Device, Dtype, GemmTile, GemmW4A4Desc, GemmW4A4Plan, PackedWeights, TokensLayout, TokensOperand,
};
use duquant::kernels::{Affine, QuantizedMatrix};
use duquant_reference as reference;
use half::{bf16, f16};
use std::sync::Arc;

/// How the codes of an operand come to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Codes {
    Any,
    /// Nothing but the largest code: the largest sums.
    Largest,
    /// The largest code or 0, with such zero points: the largest corrections.
    Extremes,
    /// Quantized from numbers: zeros, one sign, one value some thousands of times the median, noise.
    Quantized,
}

pub(crate) const KINDS: [Codes; 4] = [Codes::Any, Codes::Largest, Codes::Extremes, Codes::Quantized];

fn draw(codes: Codes, largest: u8, random: &mut Random) -> u8 {
    match codes {
        Codes::Any | Codes::Quantized => random.below(usize::from(largest) + 1) as u8,
        Codes::Largest => largest,
        Codes::Extremes => largest * (random.next() & 1) as u8,
    }
}

fn row(codes: Codes, k: usize, bits: u32, random: &mut Random) -> (Vec<u8>, f32, u8) {
    let largest = ((1_u32 << bits) - 1) as u8;
    if let Codes::Quantized = codes {
        let mut numbers = random.normals(k);
        match random.below(5) {
            0 => numbers.fill(0.0),
            1 => numbers.iter_mut().for_each(|x| *x = x.abs()),
            2 => numbers.iter_mut().for_each(|x| *x = -x.abs()),
            3 => numbers[random.below(k)] = 6745.0,
            _ => {}
        }
        let mut out = vec![0; k];
        let params = Affine::new(bits, 0.9).unwrap().quantize_row(&numbers, &mut out).unwrap();
        return (out, params.scale, params.zero_point);
    }
    let out = (0..k).map(|_| draw(codes, largest, random)).collect();
    (out, (0.001 + random.uniform()) as f32, draw(codes, largest, random))
}

/// A weight `[n, k]`.
pub(crate) fn draw_weight(n: usize, k: usize, bits: u32, codes: Codes, random: &mut Random) -> QuantizedMatrix {
    let (mut packed, mut scale, mut zero_point) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..n {
        let (row, s, z) = row(codes, k, bits, random);
        packed.extend(reference::pack_row(&row, bits).iter().flat_map(|word| word.to_le_bytes()));
        scale.push(s);
        zero_point.push(z);
    }
    QuantizedMatrix { n, k, bits, packed, scale, zero_point }
}

/// Tokens `[count, k]`.
pub(crate) fn draw_tokens(count: usize, k: usize, bits: u32, codes: Codes, random: &mut Random) -> HostTokens {
    let mut x = HostTokens::new(count, k);
    x.set_tokens(count).unwrap();
    let stride = x.stride();
    for t in 0..count {
        let (row, scale, zero_point) = row(codes, k, bits, random);
        x.codes[t * stride..t * stride + k].copy_from_slice(&row);
        x.row_sum[t] = row.iter().map(|&code| i32::from(code)).sum();
        x.scale[t] = scale;
        x.zero_point[t] = i32::from(zero_point);
    }
    x
}

/// Tokens on the device, as `transform_quantize` leaves them. Memory ends with the last group of tokens that there is.
pub(crate) struct DeviceTokens {
    codes: Buffer,
    params: Buffer,
}

impl DeviceTokens {
    pub(crate) fn new(device: &Arc<dyn Device>, layout: &TokensLayout, x: &HostTokens) -> Self {
        let layout = TokensLayout { m_max: x.tokens(), ..*layout };
        let (mut codes, mut params) = (vec![0_u8; layout.code_bytes() as usize], Vec::new());
        for t in 0..x.tokens() {
            for (k, &code) in x.row(t).iter().enumerate() {
                let (byte, bit) = layout.place(x.tokens(), t, k);
                codes[byte] |= code << bit;
            }
            params.extend([x.scale[t].to_bits(), x.zero_point[t] as u32, x.row_sum[t] as u32, 0xdead_beef]);
        }
        Self { codes: upload(device, &codes), params: upload(device, &params) }
    }

    pub(crate) fn operand(&self) -> TokensOperand {
        TokensOperand { codes: self.codes.address(), params: self.params.address() }
    }
}

/// Runs `plan` twice in one workspace, each time on `held`; both must give the same bytes of `y` and leave the workspace 0.
pub(crate) fn run(
    device: &Arc<dyn Device>,
    plan: &GemmW4A4Plan,
    weights: &PackedWeights,
    x: &HostTokens,
    held: &[u8],
) -> Vec<u8> {
    let tokens = DeviceTokens::new(device, &plan.tokens(), x);
    let workspace = Buffer::zeroed(device, "workspace", plan.workspace_bytes().max(16)).unwrap();
    let [first, second] = [(); 2].map(|()| {
        let y = upload(device, held);
        // SAFETY: the operands are as large as the plan says.
        unsafe {
            plan.enqueue(
                device.as_ref(),
                STREAM,
                x.tokens(),
                tokens.operand(),
                weights.operand(),
                y.address(),
                workspace.address(),
            )
        }
        .unwrap_or_else(|fault| panic!("{} {:?}: {fault}", plan.kernel(x.tokens()), plan.desc()));
        download::<u8>(&y, held.len())
    });
    assert!(first == second, "{} {:?}: a second run differs", plan.kernel(x.tokens()), plan.desc());
    let left: Vec<u8> = download(&workspace, plan.workspace_bytes() as usize);
    assert!(left.iter().all(|&byte| byte == 0), "{}: the workspace is not left 0", plan.kernel(x.tokens()));
    first
}

fn encode(dtype: Dtype, x: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => bytemuck::cast_slice(x).to_vec(),
        Dtype::F16 => x.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => x.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.chunks(4).map(bytemuck::pod_read_unaligned).collect(),
        Dtype::F16 => bytes.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::Bf16 => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

/// The integers of one shape with `m_max` tokens, bit for bit those of the oracle.
pub(crate) fn check_integers(
    device: &Arc<dyn Device>,
    desc: &GemmW4A4Desc,
    tile: Option<GemmTile>,
    codes: Codes,
    seed: u64,
) {
    let mut random = Random::new(seed);
    let plain = GemmW4A4Desc { bias: false, accumulate: false, ..*desc };
    let plan = GemmW4A4Plan::plan_integers(device.as_ref(), &plain, tile).unwrap();
    let matrix = draw_weight(desc.n, desc.k, desc.weight_bits, codes, &mut random);
    let x = draw_tokens(desc.m_max, desc.k, desc.activation_bits, codes, &mut random);
    let want = reference::gemm_w4a4(&oracle::rows(&x), &oracle::matrix(&matrix), None);
    let packed = plan.pack(device, &matrix).unwrap();
    let got = run(device, &plan, &packed, &x, &vec![0xaa; 4 * desc.m_max * desc.n]);
    let got: Vec<i32> = got.chunks(4).map(bytemuck::pod_read_unaligned).collect();
    for (i, (&got, &want)) in got.iter().zip(&want.integers).enumerate() {
        let (t, n) = (i / desc.n, i % desc.n);
        let place = || format!("{} {} {desc:?} {codes:?} seed {seed}", device.name(), plan.kernel(desc.m_max));
        assert!(i64::from(got) == want, "{}: token {t}, channel {n}: {got} for {want}", place());
    }
}

/// The output of one shape in the type and with the epilogue of `desc`: bit for bit the documented formula on the oracle's
/// integers, and the oracle's own numbers but for rounding.
pub(crate) fn check_floats(
    device: &Arc<dyn Device>,
    desc: &GemmW4A4Desc,
    tile: Option<GemmTile>,
    codes: Codes,
    seed: u64,
) {
    let mut random = Random::new(seed);
    let plan = match tile {
        Some(tile) => GemmW4A4Plan::plan_with(device.as_ref(), desc, tile).unwrap(),
        None => GemmW4A4Plan::plan(device.as_ref(), desc).unwrap(),
    };
    let matrix = draw_weight(desc.n, desc.k, desc.weight_bits, codes, &mut random);
    let x = draw_tokens(desc.m_max, desc.k, desc.activation_bits, codes, &mut random);
    let bias = desc.bias.then(|| random.normals(desc.n));
    let wide_bias = bias.as_ref().map(|bias| oracle::widen(bias));
    let want = reference::gemm_w4a4(&oracle::rows(&x), &oracle::matrix(&matrix), wide_bias.as_deref());
    // NaN, unless it is to be added to.
    let held = if desc.accumulate { random.normals(desc.m_max * desc.n) } else { vec![f32::NAN; desc.m_max * desc.n] };
    let held = encode(desc.out, &held);
    let packed = plan.pack_stacked(device, &[&matrix], bias.as_deref()).unwrap();
    let got = decode(desc.out, &run(device, &plan, &packed, &x, &held));
    let held = decode(desc.out, &held);
    for (i, &got) in got.iter().enumerate() {
        let (t, n) = (i / desc.n, i % desc.n);
        let place = || format!("{} {} {desc:?} {codes:?}, {t}, {n}", device.name(), plan.kernel(desc.m_max));
        let product = (x.scale[t] * matrix.scale[n]) * want.integers[i] as f32;
        let mut y = product + bias.as_ref().map_or(0.0, |bias| bias[n]);
        let mut exact = want.y[i];
        let mut size = f64::from(product.abs()) + (exact - f64::from(product)).abs();
        if desc.accumulate {
            y += held[i];
            exact += f64::from(held[i]);
            size += f64::from(held[i].abs());
        }
        let rounded = decode(desc.out, &encode(desc.out, &[y]))[0];
        assert!(got.to_bits() == rounded.to_bits(), "{}: {got} for {rounded}", place());
        let half_ulp = match desc.out {
            Dtype::F32 => 0.0,
            Dtype::F16 => exact.abs() * 2.0_f64.powi(-11) + 2.0_f64.powi(-25),
            Dtype::Bf16 => exact.abs() * 2.0_f64.powi(-8),
        };
        if desc.out != Dtype::F16 || exact.abs() < 65_000.0 {
            let error = (f64::from(got) - exact).abs();
            assert!(error <= half_ulp + size * 2.0_f64.powi(-21), "{}: {got} for exactly {exact}", place());
        }
    }
}

/// A shape with 4-bit codes that writes `f32`.
pub(crate) fn desc(m_max: usize, n: usize, k: usize) -> GemmW4A4Desc {
    GemmW4A4Desc { m_max, n, k, weight_bits: 4, activation_bits: 4, out: Dtype::F32, bias: false, accumulate: false }
}

/// The numbers of tokens that break kernels.
pub(crate) const TOKENS: [usize; 10] = [1, 2, 3, 7, 8, 9, 63, 64, 65, 257];

/// Every tile of `tiles` (and `None`, the plan's own choice) on every number of tokens that it takes, with shapes, bits and
/// codes drawn. Returns the number of cases.
pub(crate) fn check_tiles(device: &Arc<dyn Device>, tiles: &[Option<GemmTile>], bits: &[u32], seed: u64) -> usize {
    let mut random = Random::new(seed);
    let mut cases = 0;
    for &tile in tiles {
        for (i, tokens) in TOKENS.into_iter().enumerate() {
            if matches!(tile, Some(GemmTile::Streamed { tokens: most }) if tokens > most as usize) {
                continue;
            }
            // Either many channels in and few out, or the reverse: both ends of a row, and rows that blocks share.
            let shapes = [
                ([1, 63, 65, 100, 129][i % 5], [576, 64, 1000, 200][i % 4]),
                ([200, 64, 321, 130][random.below(4)], [64, 65, 130, 320][random.below(4)]),
            ];
            for (n, k) in shapes {
                let activation_bits = bits[cases % bits.len()];
                let weight_bits = [4, 2, 3][cases % 3];
                let desc = GemmW4A4Desc { weight_bits, activation_bits, ..desc(tokens, n, k) };
                check_integers(device, &desc, tile, KINDS[random.below(4)], random.next());
                cases += 1;
            }
        }
    }
    cases
}
