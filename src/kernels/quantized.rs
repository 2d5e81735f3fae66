use super::error::check_length;
use super::{Affine, Error, RowParams};
use rayon::prelude::*;

/// A quantized weight `[N, K]` in its canonical layout: the one that goes to disk and that every backend packs from.
///
/// Row `n` stands for `scale[n] * (code[n, k] - zero_point[n])`. Codes of up to 4 bits lie two to a byte, low nibble
/// first; wider ones one to a byte. A row is padded with code 0 to a whole number of `u32` words, so that a little-endian
/// reader sees `I32 [N, ceil(K / 8)]` (or `ceil(K / 4)` for wide codes).
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedMatrix {
    /// Output channels `N`.
    pub n: usize,
    /// Input channels `K`.
    pub k: usize,
    /// Bits of a code, 2 to 8.
    pub bits: u32,
    /// Packed codes, `n * row_bytes` long.
    pub packed: Vec<u8>,
    /// Scale of each output channel, `[N]`.
    pub scale: Vec<f32>,
    /// Zero point of each output channel, `[N]`.
    pub zero_point: Vec<u8>,
}

impl QuantizedMatrix {
    /// Bytes of one packed row of `k` codes of `bits` bits.
    #[must_use]
    pub fn row_bytes_of(k: usize, bits: u32) -> usize {
        if bits <= 4 { k.div_ceil(8) * 4 } else { k.div_ceil(4) * 4 }
    }

    /// Bytes of one packed row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        Self::row_bytes_of(self.k, self.bits)
    }

    /// Quantizes a row-major `weight` `[N, K]`, each output channel on its own, with `settings[n]` for row `n` or
    /// `settings[0]` for all.
    ///
    /// # Errors
    /// [`Error::Length`] when `weight` is not `n * k` long or `settings` neither 1 nor `n` long,
    /// [`Error::Unsupported`] when rows ask for different bits, [`Error::NotFinite`] with the first bad row.
    pub fn quantize(weight: &[f32], n: usize, k: usize, settings: &[Affine]) -> Result<Self, Error> {
        check_length("weight", n * k, weight.len())?;
        if settings.len() != 1 {
            check_length("settings", n, settings.len())?;
        }
        let Some(first) = settings.first() else {
            return Err(Error::Length { operand: "settings", expected: 1, got: 0 });
        };
        let bits = first.bits;
        if let Some(other) = settings.iter().find(|s| s.bits != bits) {
            return Err(Error::Unsupported {
                what: "settings.bits",
                expected: bits.to_string(),
                got: other.bits.to_string(),
            });
        }
        Self::from_rows(n, k, bits, |row, codes| {
            let settings = settings.get(row).unwrap_or(first);
            settings
                .quantize_row(&weight[row * k..(row + 1) * k], codes)
                .map_err(|_| Error::NotFinite { operand: "weight", row })
        })
    }

    /// Packs `n` rows of `k` codes of `bits` bits, which `fill` writes one code a byte, in any order of rows.
    ///
    /// # Errors
    /// Whatever `fill` says.
    pub fn from_rows(
        n: usize,
        k: usize,
        bits: u32,
        fill: impl Fn(usize, &mut [u8]) -> Result<RowParams, Error> + Sync,
    ) -> Result<Self, Error> {
        let row_bytes = Self::row_bytes_of(k, bits);
        let mut packed = vec![0_u8; n * row_bytes];
        let mut scale = vec![0.0; n];
        let mut zero_point = vec![0; n];
        packed
            .par_chunks_mut(row_bytes.max(1))
            .zip(scale.par_iter_mut().zip(zero_point.par_iter_mut()))
            .enumerate()
            .try_for_each_init(
                || vec![0_u8; k],
                |codes, (row, (packed, (scale, zero_point)))| {
                    let params = fill(row, codes)?;
                    pack_row(codes, bits, packed);
                    *scale = params.scale;
                    *zero_point = params.zero_point;
                    Ok(())
                },
            )?;
        Ok(Self { n, k, bits, packed, scale, zero_point })
    }

    /// Checks that lengths, bits and zero points agree with the shape. Readers of untrusted files call it.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Unsupported`] naming the field.
    pub fn validate(&self) -> Result<(), Error> {
        let settings = Affine::new(self.bits, 1.0)?;
        let expected = self.n.checked_mul(self.row_bytes()).unwrap_or(usize::MAX);
        check_length("packed", expected, self.packed.len())?;
        check_length("scale", self.n, self.scale.len())?;
        check_length("zero_point", self.n, self.zero_point.len())?;
        if let Some(row) = self.scale.iter().position(|s| !s.is_finite() || *s <= 0.0) {
            return Err(Error::NotFinite { operand: "scale", row });
        }
        let max_code = settings.max_code();
        if let Some(zero_point) = self.zero_point.iter().find(|&&z| z > max_code) {
            return Err(Error::Unsupported {
                what: "zero_point",
                expected: format!("0 to {max_code}"),
                got: zero_point.to_string(),
            });
        }
        Ok(())
    }

    /// Unpacks row `n` into one code a byte.
    ///
    /// # Panics
    /// When `n` is out of range or `codes` is not `k` long.
    pub fn unpack_row(&self, n: usize, codes: &mut [u8]) {
        assert_eq!(codes.len(), self.k, "codes must hold one row");
        let row = &self.packed[n * self.row_bytes()..(n + 1) * self.row_bytes()];
        if self.bits <= 4 {
            for (k, code) in codes.iter_mut().enumerate() {
                *code = (row[k / 2] >> (4 * (k % 2))) & 15;
            }
        } else {
            codes.copy_from_slice(&row[..self.k]);
        }
    }

    /// The real numbers that the codes stand for, row-major `[N, K]`.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n * self.k];
        out.par_chunks_mut(self.k.max(1)).enumerate().for_each_init(
            || vec![0_u8; self.k],
            |codes, (n, out)| {
                self.unpack_row(n, codes);
                let (scale, zero_point) = (self.scale[n], f32::from(self.zero_point[n]));
                for (x, &code) in out.iter_mut().zip(codes.iter()) {
                    *x = scale * (f32::from(code) - zero_point);
                }
            },
        );
        out
    }
}

/// Packs one row of codes; bytes past the last code are left as they are (zero in a fresh buffer).
fn pack_row(codes: &[u8], bits: u32, packed: &mut [u8]) {
    if bits <= 4 {
        for (byte, pair) in packed.iter_mut().zip(codes.chunks(2)) {
            *byte = pair[0] | pair.get(1).map_or(0, |high| high << 4);
        }
    } else {
        packed[..codes.len()].copy_from_slice(codes);
    }
}
