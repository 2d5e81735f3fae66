//! Every block type against ggml's own order of loops, written out once more here.

use super::fixtures::random_bytes;
use crate::checkpoint::gguf::BlockType;
use half::f16;

fn half(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Values of one block as the format's definition gives them, walking the bytes in order.
fn reference(kind: BlockType, b: &[u8]) -> Vec<f32> {
    let mut y = vec![0.0_f32; kind.values()];
    let simple = |base: usize, value: &dyn Fn(u8) -> f32, y: &mut [f32], high: u32| {
        for j in 0..16 {
            let low_bit = (((high >> j) << 4) & 0x10) as u8;
            let high_bit = ((high >> (j + 12)) & 0x10) as u8;
            y[j] = value((b[base + j] & 0x0F) | low_bit);
            y[j + 16] = value((b[base + j] >> 4) | high_bit);
        }
    };
    match kind {
        BlockType::F32 => y[0] = f32::from_bits(u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        BlockType::F16 => y[0] = half(b, 0),
        BlockType::Bf16 => y[0] = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16),
        BlockType::Q4_0 => simple(2, &|q| (i32::from(q) - 8) as f32 * half(b, 0), &mut y, 0),
        BlockType::Q4_1 => simple(4, &|q| f32::from(q) * half(b, 0) + half(b, 2), &mut y, 0),
        BlockType::Q5_0 => {
            let high = u32::from_le_bytes(b[2..6].try_into().unwrap());
            simple(6, &|q| (i32::from(q) - 16) as f32 * half(b, 0), &mut y, high);
        }
        BlockType::Q5_1 => {
            let high = u32::from_le_bytes(b[4..8].try_into().unwrap());
            simple(8, &|q| f32::from(q) * half(b, 0) + half(b, 2), &mut y, high);
        }
        BlockType::Q8_0 => (0..32).for_each(|j| y[j] = f32::from(b[2 + j] as i8) * half(b, 0)),
        BlockType::Q2K => {
            let (mut at, mut scale, d, m) = (0, 0, half(b, 80), half(b, 82));
            for part in 0..2 {
                for shift in [0, 2, 4, 6] {
                    for side in 0..2 {
                        let (dl, ml) = (d * f32::from(b[scale] & 0xF), m * f32::from(b[scale] >> 4));
                        scale += 1;
                        for l in 0..16 {
                            let q = (b[16 + 32 * part + 16 * side + l] >> shift) & 3;
                            y[at] = dl * f32::from(q) - ml;
                            at += 1;
                        }
                    }
                }
            }
        }
        BlockType::Q3K => {
            let word = |i: usize| u32::from_le_bytes(b[96 + 4 * i..100 + 4 * i].try_into().unwrap());
            let (low, high) = (0x0f0f_0f0f, 0x0303_0303);
            let words = [
                (word(0) & low) | ((word(2) & high) << 4),
                (word(1) & low) | (((word(2) >> 2) & high) << 4),
                ((word(0) >> 4) & low) | (((word(2) >> 4) & high) << 4),
                ((word(1) >> 4) & low) | (((word(2) >> 6) & high) << 4),
            ];
            let scales: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let (mut at, mut scale, mut mask) = (0, 0, 1_u8);
            for part in 0..2 {
                for shift in [0, 2, 4, 6] {
                    for side in 0..2 {
                        let dl = half(b, 108) * (i32::from(scales[scale]) - 32) as f32;
                        scale += 1;
                        for l in 0..16 {
                            let q = i32::from((b[32 + 32 * part + 16 * side + l] >> shift) & 3);
                            let minus = if b[16 * side + l] & mask != 0 { 0 } else { 4 };
                            y[at] = dl * (q - minus) as f32;
                            at += 1;
                        }
                    }
                    mask = mask.wrapping_shl(1);
                }
            }
        }
        BlockType::Q4K | BlockType::Q5K => {
            let (d, m, s) = (half(b, 0), half(b, 2), &b[4..16]);
            let (fifth, codes) = if kind == BlockType::Q5K { (&b[16..48], &b[48..]) } else { (&[0; 32][..], &b[16..]) };
            let scale = |j: usize| match j {
                0..4 => (s[j] & 63, s[j + 4] & 63),
                _ => ((s[j + 4] & 0xF) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4)),
            };
            let (mut u1, mut u2) = (1_u8, 2_u8);
            for j in 0..4 {
                let ((s1, t1), (s2, t2)) = (scale(2 * j), scale(2 * j + 1));
                for l in 0..32 {
                    let q = codes[32 * j + l];
                    let low = (q & 0xF) + if fifth[l] & u1 != 0 { 16 } else { 0 };
                    let high = (q >> 4) + if fifth[l] & u2 != 0 { 16 } else { 0 };
                    y[64 * j + l] = d * f32::from(s1) * f32::from(low) - m * f32::from(t1);
                    y[64 * j + 32 + l] = d * f32::from(s2) * f32::from(high) - m * f32::from(t2);
                }
                (u1, u2) = (u1.wrapping_shl(2), u2.wrapping_shl(2));
            }
        }
        BlockType::Q6K => {
            let d = half(b, 208);
            for part in 0..2 {
                let (ql, qh, sc) = (&b[64 * part..], &b[128 + 32 * part..], &b[192 + 8 * part..]);
                for l in 0..32 {
                    let codes = [
                        (ql[l] & 0xF) | ((qh[l] & 3) << 4),
                        (ql[l + 32] & 0xF) | (((qh[l] >> 2) & 3) << 4),
                        (ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4),
                        (ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4),
                    ];
                    for (i, code) in codes.into_iter().enumerate() {
                        let scale = d * f32::from(sc[l / 16 + 2 * i] as i8);
                        y[128 * part + 32 * i + l] = scale * (i32::from(code) - 32) as f32;
                    }
                }
            }
        }
    }
    y
}

#[test]
fn every_block_type_dequantizes_as_its_definition_says() {
    for kind in BlockType::ALL {
        // More blocks than one thread's share, and bytes of every kind; NaN scales compare by bits.
        let data = random_bytes(u64::from(kind.id()), kind.bytes() * 9000_usize.div_ceil(kind.values()));
        let expected: Vec<f32> = data.chunks_exact(kind.bytes()).flat_map(|block| reference(kind, block)).collect();
        let got = kind.dequantize(&data);
        assert_eq!(got.len(), expected.len());
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        let first = got.iter().zip(&expected).position(|(&a, &b)| !same(a, b));
        assert_eq!(first, None, "{kind:?}");
    }
}

#[test]
fn numbers_of_types_are_those_of_the_format() {
    let ids: Vec<u32> = BlockType::ALL.iter().map(|kind| kind.id()).collect();
    assert_eq!(ids, [0, 1, 30, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14]);
    assert!(BlockType::ALL.into_iter().all(|kind| BlockType::from_id(kind.id()) == Some(kind)));
    // Q4_2 and Q4_3 (4, 5) were removed from the format, Q8_1 and Q8_K are for activations only.
    assert!([4, 5, 9, 15, 16, 1 << 31].into_iter().all(|id| BlockType::from_id(id).is_none()));
}
