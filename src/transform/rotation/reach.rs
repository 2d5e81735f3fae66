use super::screen::{Codes, GROUP};
use crate::kernels::cpu::Isa;

/// Columns that are computed together: a block is a multiple of it.
pub(super) const COLUMNS: usize = 4;

/// Largest and smallest integer product of each row of a group with the columns of a rotation.
///
/// `rows` holds shifted codes, `[B / 4, GROUP, 4]`; `max` and `min` are merged into. `isa` must be available, and every
/// one gives the same integers.
pub(super) fn reach(
    isa: Isa,
    rows: &[u8],
    codes: &Codes,
    scratch: &mut Vec<i32>,
    max: &mut [i32; GROUP],
    min: &mut [i32; GROUP],
) {
    let block = codes.start.len();
    assert!(rows.len() == block * GROUP && codes.words.len() == block * block / 4 && block.is_multiple_of(COLUMNS));
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512Vnni {
        if cfg!(target_os = "linux") && isa == Isa::Amx && block.is_multiple_of(TILE_BYTES) {
            scratch.resize(block * GROUP, 0);
            // SAFETY: Isa::Amx was detected, so the process may use tiles and AVX-512; the lengths were asserted, and
            // block is a multiple of a tile's 64 bytes.
            return unsafe {
                products_amx(rows, codes, scratch);
                extremes_of_products(scratch, &codes.start, max, min);
            };
        }
        // SAFETY: the instruction sets of the function were detected, and the lengths asserted.
        return unsafe { reach_avx512(rows, codes, max, min) };
    }
    let _ = (isa, scratch);
    reach_scalar(rows, codes, max, min);
}

fn reach_scalar(rows: &[u8], codes: &Codes, max: &mut [i32; GROUP], min: &mut [i32; GROUP]) {
    let quarter = codes.words.len() / codes.start.len().max(1);
    for (words, &start) in codes.words.chunks_exact(quarter).zip(&codes.start) {
        for lane in 0..GROUP {
            let mut sum = start;
            for (k, word) in words.iter().enumerate() {
                let row = &rows[(k * GROUP + lane) * 4..][..4];
                sum += row.iter().zip(word.to_le_bytes()).map(|(&q, c)| i32::from(q) * i32::from(c as i8)).sum::<i32>();
            }
            max[lane] = max[lane].max(sum);
            min[lane] = min[lane].min(sum);
        }
    }
}

/// [`reach`] on VNNI: 16 rows a vector, the codes of a column broadcast.
///
/// # Safety
/// The CPU has the instruction sets, and the lengths are those that [`reach`] asserts.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn reach_avx512(rows: &[u8], codes: &Codes, max: &mut [i32; GROUP], min: &mut [i32; GROUP]) {
    use std::arch::x86_64::{
        __m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_max_epi32, _mm512_min_epi32, _mm512_set1_epi32,
        _mm512_storeu_si512,
    };
    const VECTORS: usize = GROUP / 16;
    let block = codes.start.len();
    let quarter = block / 4;
    let mut high = [_mm512_set1_epi32(i32::MIN); VECTORS];
    let mut low = [_mm512_set1_epi32(i32::MAX); VECTORS];
    for column in (0..block).step_by(COLUMNS) {
        let mut sums = [[_mm512_set1_epi32(0); VECTORS]; COLUMNS];
        for c in 0..COLUMNS {
            sums[c] = [_mm512_set1_epi32(codes.start[column + c]); VECTORS];
        }
        for k in 0..quarter {
            let mut x = [_mm512_set1_epi32(0); VECTORS];
            for v in 0..VECTORS {
                // SAFETY: `rows` holds `block / 4` times `GROUP * 4` bytes; k < block / 4, v < GROUP / 16.
                x[v] = unsafe { _mm512_loadu_si512(rows.as_ptr().add((k * GROUP + v * 16) * 4).cast::<__m512i>()) };
            }
            for c in 0..COLUMNS {
                // SAFETY: `words` holds `block` columns of `quarter` words; column + c < block.
                let word = _mm512_set1_epi32(unsafe { *codes.words.get_unchecked((column + c) * quarter + k) });
                for v in 0..VECTORS {
                    sums[c][v] = _mm512_dpbusd_epi32(sums[c][v], x[v], word);
                }
            }
        }
        for c in 0..COLUMNS {
            for v in 0..VECTORS {
                high[v] = _mm512_max_epi32(high[v], sums[c][v]);
                low[v] = _mm512_min_epi32(low[v], sums[c][v]);
            }
        }
    }
    for v in 0..VECTORS {
        // SAFETY: both arrays hold GROUP = 16 * VECTORS integers.
        unsafe {
            _mm512_storeu_si512(max.as_mut_ptr().add(v * 16).cast::<__m512i>(), high[v]);
            _mm512_storeu_si512(min.as_mut_ptr().add(v * 16).cast::<__m512i>(), low[v]);
        }
    }
}

/// Bytes of a tile's row: 64 codes of a column.
#[cfg(target_arch = "x86_64")]
const TILE_BYTES: usize = 64;

/// Integer products of a group on AMX, `[B columns, GROUP]`, without the columns' start.
///
/// ```text
///            4 tiles of 16 rows (tmm4..7), 64 codes deep
/// 16 columns (tmm0..3 += tmm? signed x unsigned), then on to the next 16 columns
/// ```
///
/// # Safety
/// The process may use tiles, the block is a multiple of 64, `rows` and `codes` have the lengths that [`reach`] asserts,
/// and `products` holds `B * GROUP` integers.
#[cfg(target_arch = "x86_64")]
unsafe fn products_amx(rows: &[u8], codes: &Codes, products: &mut [i32]) {
    /// Palette 1; every tile has 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Config([u8; 64]);
    const CONFIG: Config = {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = TILE_BYTES as u8;
            bytes[48 + tile] = 16;
            tile += 1;
        }
        Config(bytes)
    };
    let block = codes.start.len();
    let config = CONFIG;
    // SAFETY: the strip loop runs B / 16 times over 16 columns of B bytes and 16 rows of GROUP products, the depth loop
    // B / 64 times over 64 bytes of each column and 16 rows of GROUP * 4 bytes; all stay inside the slices. The tile
    // state is set up and released here. Nothing else is touched, and no stack is used.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{config}]",
            "2:", // 16 columns
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "mov {x}, {rows}",
            "mov {depth}, {depths}",
            "3:", // 64 codes
            "tileloadd tmm4, [{column} + {block} * 1]",
            "tileloadd tmm5, [{x} + {stride} * 1]",
            "tileloadd tmm6, [{x} + {stride} * 1 + 64]",
            "tdpbsud tmm0, tmm4, tmm5",
            "tileloadd tmm7, [{x} + {stride} * 1 + 128]",
            "tdpbsud tmm1, tmm4, tmm6",
            "tileloadd tmm5, [{x} + {stride} * 1 + 192]",
            "tdpbsud tmm2, tmm4, tmm7",
            "add {column}, 64",
            "add {x}, 4096",
            "tdpbsud tmm3, tmm4, tmm5",
            "dec {depth}",
            "jnz 3b",
            "tilestored [{out} + {stride} * 1], tmm0",
            "tilestored [{out} + {stride} * 1 + 64], tmm1",
            "tilestored [{out} + {stride} * 1 + 128], tmm2",
            "tilestored [{out} + {stride} * 1 + 192], tmm3",
            "add {out}, 4096",
            "add {column}, {next}",
            "dec {strips}",
            "jnz 2b",
            "tilerelease",
            config = in(reg) &raw const config,
            rows = in(reg) rows.as_ptr(),
            column = inout(reg) codes.words.as_ptr() => _,
            out = inout(reg) products.as_mut_ptr() => _,
            strips = inout(reg) block / 16 => _,
            depths = in(reg) block / TILE_BYTES,
            block = in(reg) block,
            stride = in(reg) GROUP * 4,
            next = in(reg) 15 * block, // the depth loop went along one of 16 columns
            x = out(reg) _,
            depth = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Merges products `[B columns, GROUP]`, each plus its column's start, into the extremes of their rows.
///
/// # Safety
/// The CPU has AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn extremes_of_products(products: &[i32], start: &[i32], max: &mut [i32; GROUP], min: &mut [i32; GROUP]) {
    use std::arch::x86_64::{
        __m512i, _mm512_add_epi32, _mm512_loadu_si512, _mm512_max_epi32, _mm512_min_epi32, _mm512_set1_epi32,
        _mm512_storeu_si512,
    };
    for lanes in (0..GROUP).step_by(16) {
        let (mut high, mut low) = (_mm512_set1_epi32(i32::MIN), _mm512_set1_epi32(i32::MAX));
        for (column, &start) in products.chunks_exact(GROUP).zip(start) {
            // SAFETY: a column holds GROUP products, a multiple of 16.
            let product = unsafe { _mm512_loadu_si512(column.as_ptr().add(lanes).cast::<__m512i>()) };
            let sum = _mm512_add_epi32(product, _mm512_set1_epi32(start));
            high = _mm512_max_epi32(high, sum);
            low = _mm512_min_epi32(low, sum);
        }
        // SAFETY: both arrays hold GROUP integers.
        unsafe {
            _mm512_storeu_si512(max.as_mut_ptr().add(lanes).cast::<__m512i>(), high);
            _mm512_storeu_si512(min.as_mut_ptr().add(lanes).cast::<__m512i>(), low);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_same_integers() {
        for block in [4, 8, 64, 128, 192] {
            let mut state = 12345u32;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state >> 8
            };
            let r: Vec<f32> = (0..block * block).map(|_| next() as f32 / (1 << 23) as f32 - 1.0).collect();
            let mut codes = Codes::new(&r, block);
            // The largest sums there can be, of both signs, in two columns.
            for k in 0..block / 4 {
                codes.words[k] = 0x7f7f_7f7f;
                codes.words[block / 4 + k] = i32::from_ne_bytes([0x81; 4]);
            }
            (codes.start[0], codes.start[1]) = (-128 * 127 * block as i32, 128 * 127 * block as i32);
            let mut rows: Vec<u8> = (0..block * GROUP).map(|_| next() as u8).collect();
            rows.iter_mut().enumerate().filter(|(i, _)| i / 4 % GROUP == 3).for_each(|(_, q)| *q = 255);
            let run = |isa| {
                let (mut max, mut min) = ([i32::MIN; GROUP], [i32::MAX; GROUP]);
                reach(isa, &rows, &codes, &mut vec![7; 3], &mut max, &mut min);
                (max, min)
            };
            let scalar = run(Isa::Portable);
            assert_eq!((scalar.0[3], scalar.1[3]), (127 * 127 * block as i32, -127 * 127 * block as i32));
            for &isa in Isa::available() {
                assert_eq!(run(isa), scalar, "{isa:?} {block}");
            }
        }
    }
}
