use super::aligned::{Aligned, LINE};
use super::lanes::LANES;
use super::prefetch::prefetch_line;
use super::tiles::SharedMut;
use crate::kernels::{Affine, Error};

/// The largest head dimension that the kernels take.
pub(super) const MAX_HEAD_DIM: usize = 256;

/// What one layer's cache holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvCacheDesc {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels of a head `D`: even, at most 256.
    pub head_dim: usize,
    /// Tokens that it can hold.
    pub capacity: usize,
    /// Quantizer of keys (and of queries, which meet them): per token and head. `None` keeps `f32`.
    pub key: Option<Affine>,
    /// Quantizer of values, per token and head. `None` keeps `f32`.
    pub value: Option<Affine>,
}

/// Keys and values of one layer, after RoPE and Hadamard, quantized per token and head (or in `f32`).
///
/// Codes of up to 4 bits lie two to a byte, wider ones one to a byte. Keys lie `[head][token / 16][D / 4][16 tokens][4]`,
/// so that one vector meets 16 keys; of packed keys the low nibble is group `g` of four channels and the high one group
/// `g + D / 8`. Values lie `[head][token][D]`; of packed ones the low nibble is channel `i` and the high one `i + D / 2`.
#[derive(Debug, Clone)]
pub struct KvCache {
    desc: KvCacheDesc,
    len: usize,
    /// Capacity rounded up to whole blocks of 16 tokens.
    slots: usize,
    pub(super) key: KeyStore,
    pub(super) value: ValueStore,
}

#[derive(Debug, Clone)]
pub(super) enum KeyStore {
    Codes { affine: Affine, codes: Aligned<u8>, scale: Aligned<f32>, zero_point: Aligned<u8>, sum: Aligned<u16> },
    Float(Aligned<f32>),
}

#[derive(Debug, Clone)]
pub(super) enum ValueStore {
    Codes { affine: Affine, codes: Aligned<u8>, scale: Aligned<f32>, zero_point: Aligned<u8> },
    Float(Aligned<f32>),
}

/// Sizes that follow from a head dimension.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct HeadLayout {
    pub(super) head_dim: usize,
    /// `D` rounded up to 8: channels of a key row with padding of code 0.
    pub(super) key_dim: usize,
    /// `D / 2` rounded up to 16: where the second half of a value row begins. The row is twice as long.
    pub(super) value_half: usize,
}

impl HeadLayout {
    pub(super) fn new(head_dim: usize) -> Result<Self, Error> {
        if head_dim == 0 || head_dim > MAX_HEAD_DIM || !head_dim.is_multiple_of(2) {
            let expected = format!("an even number up to {MAX_HEAD_DIM}");
            return Err(Error::Unsupported { what: "head_dim", expected, got: head_dim.to_string() });
        }
        let value_half = (head_dim / 2).next_multiple_of(LANES);
        Ok(Self { head_dim, key_dim: head_dim.next_multiple_of(8), value_half })
    }

    /// Groups of four channels in a key row.
    pub(super) fn groups(self) -> usize {
        self.key_dim / 4
    }

    /// Bytes of 16 quantized keys.
    pub(super) fn key_block(self, bits: u32) -> usize {
        LANES * if bits <= 4 { self.key_dim / 2 } else { self.key_dim }
    }

    /// Values of a padded value row.
    pub(super) fn value_dim(self) -> usize {
        2 * self.value_half
    }

    /// Bytes of a quantized value row.
    pub(super) fn value_row(self, bits: u32) -> usize {
        if bits <= 4 { self.value_half } else { self.value_dim() }
    }

    /// Where channel `d` stands in a padded value row.
    pub(super) fn value_place(self, d: usize) -> usize {
        if d < self.head_dim / 2 { d } else { d - self.head_dim / 2 + self.value_half }
    }
}

impl KvCache {
    /// An empty cache; the only allocation.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for no heads, a head dimension that is odd or above 256, quantizer settings outside
    /// [`Affine::new`]'s, or a size that overflows.
    pub fn new(desc: &KvCacheDesc) -> Result<Self, Error> {
        let layout = HeadLayout::new(desc.head_dim)?;
        for affine in [desc.key, desc.value].into_iter().flatten() {
            Affine::new(affine.bits, affine.clip)?;
        }
        if desc.kv_heads == 0 {
            return Err(Error::Unsupported { what: "kv_heads", expected: "at least 1".into(), got: "0".into() });
        }
        let slots = desc.capacity.checked_next_multiple_of(LANES);
        let total = slots.and_then(|slots| slots.checked_mul(desc.kv_heads));
        let fits = total.and_then(|total| total.checked_mul(4 * layout.value_dim().max(layout.key_dim)));
        let (Some(slots), Some(total), Some(..=0x7fff_ffff_ffff)) = (slots, total, fits) else {
            let expected = "heads and capacity whose cache fits in memory".into();
            return Err(Error::Unsupported { what: "capacity", expected, got: desc.capacity.to_string() });
        };
        let key = match desc.key {
            Some(affine) => KeyStore::Codes {
                affine,
                codes: Aligned::new(total / LANES * layout.key_block(affine.bits)),
                scale: Aligned::new(total),
                zero_point: Aligned::new(total),
                sum: Aligned::new(total),
            },
            None => KeyStore::Float(Aligned::new(total * layout.head_dim)),
        };
        let value = match desc.value {
            Some(affine) => ValueStore::Codes {
                affine,
                codes: Aligned::new(total * layout.value_row(affine.bits)),
                scale: Aligned::new(total),
                zero_point: Aligned::new(total),
            },
            None => ValueStore::Float(Aligned::new(total * layout.value_dim())),
        };
        Ok(Self { desc: *desc, len: 0, slots, key, value })
    }

    /// What it was made for.
    #[must_use]
    pub fn desc(&self) -> &KvCacheDesc {
        &self.desc
    }

    /// Tokens that it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets every token.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Forgets the tokens from `len` on; does nothing when there are no more than that.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Bytes that it occupies at full capacity.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let key = match &self.key {
            KeyStore::Codes { codes, scale, zero_point, sum, .. } => {
                codes.bytes() + scale.bytes() + zero_point.bytes() + sum.bytes()
            }
            KeyStore::Float(values) => values.bytes(),
        };
        let value = match &self.value {
            ValueStore::Codes { codes, scale, zero_point, .. } => codes.bytes() + scale.bytes() + zero_point.bytes(),
            ValueStore::Float(values) => values.bytes(),
        };
        key + value
    }

    /// Tokens of room for each head, a multiple of 16.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// [`HeadLayout::new`] has accepted the head dimension.
    pub(super) fn layout(&self) -> HeadLayout {
        let half = (self.desc.head_dim / 2).next_multiple_of(LANES);
        HeadLayout { head_dim: self.desc.head_dim, key_dim: self.desc.head_dim.next_multiple_of(8), value_half: half }
    }

    /// Ok when `tokens` more fit.
    pub(super) fn check_room(&self, tokens: usize) -> Result<(), Error> {
        if tokens > self.desc.capacity - self.len {
            return Err(Error::Unsupported {
                what: "tokens for the cache",
                expected: format!(
                    "at most {} more ({} of {} in use)",
                    self.desc.capacity - self.len,
                    self.len,
                    self.desc.capacity
                ),
                got: tokens.to_string(),
            });
        }
        Ok(())
    }

    /// Counts `tokens` rows that were written behind the last.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// The parts that an append writes, for several tokens at once.
    pub(super) fn writer(&mut self) -> Writer<'_> {
        let (layout, slots) = (self.layout(), self.slots);
        let key = match &mut self.key {
            KeyStore::Codes { affine, codes, scale, zero_point, sum } => KeyWriter::Codes {
                affine: *affine,
                codes: SharedMut::new(codes.as_mut_slice()),
                scale: SharedMut::new(scale.as_mut_slice()),
                zero_point: SharedMut::new(zero_point.as_mut_slice()),
                sum: SharedMut::new(sum.as_mut_slice()),
            },
            KeyStore::Float(values) => KeyWriter::Float(SharedMut::new(values.as_mut_slice())),
        };
        let value = match &mut self.value {
            ValueStore::Codes { affine, codes, scale, zero_point } => ValueWriter::Codes {
                affine: *affine,
                codes: SharedMut::new(codes.as_mut_slice()),
                scale: SharedMut::new(scale.as_mut_slice()),
                zero_point: SharedMut::new(zero_point.as_mut_slice()),
            },
            ValueStore::Float(values) => ValueWriter::Float(SharedMut::new(values.as_mut_slice())),
        };
        Writer { layout, slots, key, value }
    }

    /// The key of `token` in `head` as the real numbers that it stands for, after RoPE (and after the Hadamard where keys
    /// are quantized). For tests and inspection.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a token or head that is not there.
    pub fn key(&self, head: usize, token: usize) -> Result<Vec<f32>, Error> {
        self.check_place(head, token)?;
        let (layout, row) = (self.layout(), head * self.slots + token);
        let (block, lane) = (row / LANES, row % LANES);
        Ok(match &self.key {
            KeyStore::Codes { affine, codes, scale, zero_point, .. } => {
                let size = layout.key_block(affine.bits);
                let block = &codes.as_slice()[block * size..(block + 1) * size];
                let (scale, zero) = (scale.as_slice()[row], f32::from(zero_point.as_slice()[row]));
                let code = |d: usize| {
                    let (group, place) = (d / 4, lane * 4 + d % 4);
                    let half = layout.groups() / 2;
                    match (affine.bits <= 4, group < half) {
                        (false, _) => block[group * 64 + place],
                        (true, true) => block[group * 64 + place] & 15,
                        (true, false) => block[(group - half) * 64 + place] >> 4,
                    }
                };
                (0..layout.head_dim).map(|d| scale * (f32::from(code(d)) - zero)).collect()
            }
            KeyStore::Float(values) => {
                let block = &values.as_slice()[block * LANES * layout.head_dim..(block + 1) * LANES * layout.head_dim];
                (0..layout.head_dim).map(|d| block[d * LANES + lane]).collect()
            }
        })
    }

    /// The value of `token` in `head` as the real numbers that it stands for. For tests and inspection.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a token or head that is not there.
    pub fn value(&self, head: usize, token: usize) -> Result<Vec<f32>, Error> {
        self.check_place(head, token)?;
        let (layout, row) = (self.layout(), head * self.slots + token);
        Ok(match &self.value {
            ValueStore::Codes { affine, codes, scale, zero_point } => {
                let size = layout.value_row(affine.bits);
                let codes = &codes.as_slice()[row * size..(row + 1) * size];
                let (scale, zero) = (scale.as_slice()[row], f32::from(zero_point.as_slice()[row]));
                let code = |d: usize| match (affine.bits <= 4, layout.value_place(d)) {
                    (false, place) => codes[place],
                    (true, place) if place < layout.value_half => codes[place] & 15,
                    (true, place) => codes[place - layout.value_half] >> 4,
                };
                (0..layout.head_dim).map(|d| scale * (f32::from(code(d)) - zero)).collect()
            }
            ValueStore::Float(values) => {
                let size = layout.value_dim();
                let row = &values.as_slice()[row * size..(row + 1) * size];
                (0..layout.head_dim).map(|d| row[layout.value_place(d)]).collect()
            }
        })
    }

    fn check_place(&self, head: usize, token: usize) -> Result<(), Error> {
        if head >= self.desc.kv_heads || token >= self.len {
            return Err(Error::Unsupported {
                what: "head and token",
                expected: format!("a head below {} and a token below {}", self.desc.kv_heads, self.len),
                got: format!("head {head} and token {token}"),
            });
        }
        Ok(())
    }
}

/// Writes rows of a cache; several threads may write different tokens.
pub(super) struct Writer<'a> {
    pub(super) layout: HeadLayout,
    slots: usize,
    pub(super) key: KeyWriter<'a>,
    pub(super) value: ValueWriter<'a>,
}

pub(super) enum KeyWriter<'a> {
    Codes {
        affine: Affine,
        codes: SharedMut<'a, u8>,
        scale: SharedMut<'a, f32>,
        zero_point: SharedMut<'a, u8>,
        sum: SharedMut<'a, u16>,
    },
    Float(SharedMut<'a, f32>),
}

pub(super) enum ValueWriter<'a> {
    Codes { affine: Affine, codes: SharedMut<'a, u8>, scale: SharedMut<'a, f32>, zero_point: SharedMut<'a, u8> },
    Float(SharedMut<'a, f32>),
}

impl Writer<'_> {
    /// Has the quantized parts that a token of a head is about to be written to brought near: a key of packed codes alone lies
    /// in as many cache lines as it has groups of eight channels.
    #[inline(always)]
    pub(super) fn prefetch(&self, head: usize, slot: usize) {
        let at = head * self.slots + slot;
        if let KeyWriter::Codes { affine, codes, scale, zero_point, sum } = &self.key {
            let block = self.layout.key_block(affine.bits);
            for line in (0..block).step_by(LINE) {
                prefetch_line(codes.address(at / LANES * block + line));
            }
            prefetch_line(scale.address(at));
            prefetch_line(zero_point.address(at));
            prefetch_line(sum.address(at));
        }
        if let ValueWriter::Codes { affine, codes, scale, zero_point } = &self.value {
            prefetch_line(codes.address(at * self.layout.value_row(affine.bits)));
            prefetch_line(scale.address(at));
            prefetch_line(zero_point.address(at));
        }
    }

    /// Writes a quantized key: `codes` `[key_dim]`, padded with 0.
    ///
    /// # Safety
    /// No other thread writes or reads this head and slot.
    #[inline(always)]
    pub(super) unsafe fn key_codes(
        &self,
        head: usize,
        slot: usize,
        row: &[u8; MAX_HEAD_DIM],
        params: super::lanes::Row,
    ) {
        let KeyWriter::Codes { affine, codes, scale, zero_point, sum } = &self.key else { return };
        let at = head * self.slots + slot;
        let base = at / LANES * self.layout.key_block(affine.bits) + at % LANES * 4;
        let groups = self.layout.groups();
        // SAFETY: the four bytes of each group belong to this slot alone, and so do its parameters.
        unsafe {
            if affine.bits <= 4 {
                let (low, high) = row[..4 * groups].split_at(2 * groups);
                for (g, (low, high)) in low.chunks_exact(4).zip(high.chunks_exact(4)).enumerate() {
                    let place = codes.part(base + g * 64, 4);
                    for j in 0..4 {
                        place[j] = low[j] | high[j] << 4;
                    }
                }
            } else {
                for (g, group) in row[..4 * groups].chunks_exact(4).enumerate() {
                    codes.part(base + g * 64, 4).copy_from_slice(group);
                }
            }
            scale.part(at, 1)[0] = params.scale;
            zero_point.part(at, 1)[0] = params.zero_point;
            sum.part(at, 1)[0] = params.sum as u16;
        }
    }

    /// Writes a key in `f32`, `[D]`.
    ///
    /// # Safety
    /// No other thread writes or reads this head and slot.
    #[inline(always)]
    pub(super) unsafe fn key_float(&self, head: usize, slot: usize, row: &[f32]) {
        let KeyWriter::Float(values) = &self.key else { return };
        let at = head * self.slots + slot;
        let base = at / LANES * LANES * self.layout.head_dim + at % LANES;
        for (d, &x) in row.iter().enumerate() {
            // SAFETY: the value belongs to this slot alone.
            unsafe { values.part(base + d * LANES, 1)[0] = x };
        }
    }

    /// Writes a quantized value: `codes` `[D]`.
    ///
    /// # Safety
    /// No other thread writes or reads this head and slot.
    #[inline(always)]
    pub(super) unsafe fn value_codes(&self, head: usize, slot: usize, row: &[u8], params: super::lanes::Row) {
        let ValueWriter::Codes { affine, codes, scale, zero_point } = &self.value else { return };
        let at = head * self.slots + slot;
        let size = self.layout.value_row(affine.bits);
        let (low, high) = row.split_at(row.len() / 2);
        // SAFETY: the row belongs to this slot alone, and so do its parameters.
        unsafe {
            let place = codes.part(at * size, size);
            if affine.bits <= 4 {
                for ((place, low), high) in place.iter_mut().zip(low).zip(high) {
                    *place = low | high << 4;
                }
            } else {
                place[..low.len()].copy_from_slice(low);
                place[self.layout.value_half..][..high.len()].copy_from_slice(high);
            }
            scale.part(at, 1)[0] = params.scale;
            zero_point.part(at, 1)[0] = params.zero_point;
        }
    }

    /// Writes a value in `f32`, `[D]`.
    ///
    /// # Safety
    /// No other thread writes or reads this head and slot.
    #[inline(always)]
    pub(super) unsafe fn value_float(&self, head: usize, slot: usize, row: &[f32]) {
        let ValueWriter::Float(values) = &self.value else { return };
        let size = self.layout.value_dim();
        let (low, high) = row.split_at(row.len() / 2);
        // SAFETY: the row belongs to this slot alone.
        let place = unsafe { values.part((head * self.slots + slot) * size, size) };
        place[..low.len()].copy_from_slice(low);
        place[self.layout.value_half..][..high.len()].copy_from_slice(high);
    }
}
