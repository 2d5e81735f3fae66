//! Keys, values and queries of attention on the device: what `rope_hadamard_quantize` writes and `attention` reads.

use super::super::{Affine, Error as KernelError};
use super::{Dtype, Error, Gpu};
use ::wgpu::{Buffer, BufferBinding};

/// The largest head dimension that the kernels take.
const MAX_HEAD_DIM: usize = 256;

/// How one layer's keys and values lie in memory, after RoPE and Hadamard, quantized per token and head or not.
///
/// `keys` and `values` are `[Hkv, capacity]` rows of `D` numbers in little-endian `u32` words. Codes of up to 4 bits lie eight
/// to a word: the low nibble of byte `j` of word `w` is channel `8 w + j`, the high one channel `8 w + 4 + j`. Wider codes lie
/// one to a byte, floating-point numbers as [`KvLayout::float`] says. `params` is `[Hkv, capacity]` of four words: the key's
/// scale (`f32`), its zero point in the low half and the sum of its codes in the high half of a word, then the value's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvLayout {
    /// Key and value heads `Hkv`.
    pub kv_heads: usize,
    /// Channels of a head `D`: a multiple of 16, at most 256.
    pub head_dim: usize,
    /// Tokens that it can hold.
    pub capacity: usize,
    /// Quantizer of keys (and of queries, which meet them), per token and head. `None` keeps floating point.
    pub key: Option<Affine>,
    /// Quantizer of values, per token and head. `None` keeps floating point.
    pub value: Option<Affine>,
    /// Type of keys and values that are not quantized.
    pub float: Dtype,
}

impl KvLayout {
    /// Bytes of the keys.
    #[must_use]
    pub fn key_bytes(&self) -> u64 {
        self.rows().saturating_mul(self.row_bytes(self.key_bits()))
    }

    /// Bytes of the values.
    #[must_use]
    pub fn value_bytes(&self) -> u64 {
        self.rows().saturating_mul(self.row_bytes(self.value_bits()))
    }

    /// Bytes of the scales, zero points and sums: 16 where nothing is quantized, for the binding that the kernels have all the
    /// same.
    #[must_use]
    pub fn param_bytes(&self) -> u64 {
        if self.key.is_some() || self.value.is_some() { self.rows().saturating_mul(16) } else { 16 }
    }

    /// Bits that a number of a key takes.
    pub(super) fn key_bits(&self) -> u32 {
        bits(self.key, self.float)
    }

    /// Bits that a number of a value takes.
    pub(super) fn value_bits(&self) -> u32 {
        bits(self.value, self.float)
    }

    fn rows(&self) -> u64 {
        (self.kv_heads as u64).saturating_mul(self.capacity as u64)
    }

    fn row_bytes(&self, bits: u32) -> u64 {
        self.head_dim as u64 * u64::from(bits) / 8
    }

    /// Ok when the kernels take such a cache on the device.
    pub(super) fn check(&self, gpu: &Gpu) -> Result<(), Error> {
        check_range("head_dim", self.head_dim, 16, MAX_HEAD_DIM)?;
        if !self.head_dim.is_multiple_of(16) {
            let expected = "a multiple of 16".into();
            return Err(KernelError::Unsupported { what: "head_dim", expected, got: self.head_dim.to_string() }.into());
        }
        for affine in [self.key, self.value].into_iter().flatten() {
            Affine::new(affine.bits, affine.clip)?;
        }
        check_range("kv_heads", self.kv_heads, 1, 1 << 16)?;
        check_range("capacity", self.capacity, 1, 1 << 30)?;
        check_binding(gpu, "keys", self.key_bytes())?;
        check_binding(gpu, "values", self.value_bytes())?;
        check_binding(gpu, "params", self.param_bytes())
    }

    /// Ok when the tokens `position .. position + tokens` fit.
    pub(super) fn check_room(&self, tokens: usize, position: usize) -> Result<(), Error> {
        if position.checked_add(tokens).is_none_or(|end| end > self.capacity) {
            let expected = format!("at most {} tokens in the cache", self.capacity);
            let got = format!("{position} + {tokens}");
            return Err(KernelError::Unsupported { what: "position + tokens", expected, got }.into());
        }
        Ok(())
    }
}

fn bits(affine: Option<Affine>, float: Dtype) -> u32 {
    match affine {
        Some(affine) if affine.bits <= 4 => 4,
        Some(_) => 8,
        None => 8 * float.bytes() as u32,
    }
}

/// How the queries of a call lie in memory.
///
/// `[T, H]` rows. Where keys are quantized, a row is `D` codes, one a byte, and then four words: the scale (`f32`), the zero
/// point, the sum of the codes and an unused one. Otherwise it is `D` numbers in `f32`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryLayout {
    /// Query heads `H`, a multiple of the key heads.
    pub heads: usize,
    /// Most tokens of a call.
    pub tokens_max: usize,
    /// Channels of a head `D`.
    pub head_dim: usize,
    /// Whether keys, and with them queries, are quantized.
    pub quantized: bool,
}

impl QueryLayout {
    /// The queries that meet the keys of a cache.
    #[must_use]
    pub fn new(heads: usize, tokens_max: usize, cache: &KvLayout) -> Self {
        Self { heads, tokens_max, head_dim: cache.head_dim, quantized: cache.key.is_some() }
    }

    /// Bytes of the queries.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let row = if self.quantized { self.head_dim as u64 + 16 } else { 4 * self.head_dim as u64 };
        row.saturating_mul(self.heads as u64).saturating_mul(self.tokens_max as u64)
    }

    /// Ok when the kernels take such queries with such a cache on the device.
    pub(super) fn check(&self, gpu: &Gpu, cache: &KvLayout) -> Result<(), Error> {
        cache.check(gpu)?;
        if self.heads == 0 || self.heads > 1 << 16 || !self.heads.is_multiple_of(cache.kv_heads) {
            let expected = format!("a multiple of {} key heads, at most 65536", cache.kv_heads);
            return Err(KernelError::Unsupported { what: "heads", expected, got: self.heads.to_string() }.into());
        }
        check_range("tokens_max", self.tokens_max, 1, cache.capacity)?;
        check_binding(gpu, "queries", self.bytes())
    }

    /// Ok when a call may have so many tokens.
    pub(super) fn check_tokens(&self, tokens: usize) -> Result<(), Error> {
        check_range("tokens", tokens, 0, self.tokens_max)
    }
}

/// The host's memory for the keys and values of one layer.
#[derive(Debug, Clone)]
pub struct KvBinding<'a> {
    /// [`KvLayout::key_bytes`] of keys.
    pub keys: BufferBinding<'a>,
    /// [`KvLayout::value_bytes`] of values.
    pub values: BufferBinding<'a>,
    /// [`KvLayout::param_bytes`] of scales, zero points and sums.
    pub params: BufferBinding<'a>,
}

/// Buffers of one layer's keys and values, for callers without an allocator of their own.
///
/// It does not count its tokens: each call says at which position it appends or up to which it reads.
#[derive(Debug)]
pub struct KvCache {
    layout: KvLayout,
    keys: Buffer,
    values: Buffer,
    params: Buffer,
}

impl KvCache {
    /// Room for the tokens of `layout`.
    ///
    /// # Errors
    /// [`Error::Kernel`] for a layout that the kernels do not take, otherwise as [`Gpu::buffer`].
    pub fn new(gpu: &Gpu, layout: KvLayout) -> Result<Self, Error> {
        layout.check(gpu)?;
        let keys = gpu.buffer("keys", layout.key_bytes())?;
        let values = gpu.buffer("values", layout.value_bytes())?;
        let params = gpu.buffer("cache parameters", layout.param_bytes())?;
        Ok(Self { layout, keys, values, params })
    }

    /// How keys and values lie.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &Buffer {
        &self.keys
    }

    /// The values.
    #[must_use]
    pub fn values(&self) -> &Buffer {
        &self.values
    }

    /// Scales, zero points and sums.
    #[must_use]
    pub fn params(&self) -> &Buffer {
        &self.params
    }

    /// All three as operands.
    #[must_use]
    pub fn binding(&self) -> KvBinding<'_> {
        KvBinding {
            keys: self.keys.as_entire_buffer_binding(),
            values: self.values.as_entire_buffer_binding(),
            params: self.params.as_entire_buffer_binding(),
        }
    }
}

/// Ok when `got` lies in `least ..= most`.
pub(super) fn check_range(what: &'static str, got: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&got) {
        return Ok(());
    }
    Err(KernelError::Unsupported { what, expected: format!("{least} to {most}"), got: got.to_string() }.into())
}

/// Ok when the rows `row .. row + tokens` are among `rows`.
pub(super) fn check_rows(row: usize, tokens: usize, rows: usize) -> Result<(), Error> {
    if row.checked_add(tokens).is_none_or(|end| end > rows) {
        let (expected, got) = (format!("at most {rows} rows"), format!("{row} + {tokens}"));
        return Err(KernelError::Unsupported { what: "row + tokens", expected, got }.into());
    }
    Ok(())
}

/// Ok when the device can bind so many bytes.
pub(super) fn check_binding(gpu: &Gpu, what: &str, bytes: u64) -> Result<(), Error> {
    let limits = gpu.limits();
    let (limit_name, limit) = ("max_storage_buffer_binding_size", limits.max_storage_buffer_binding_size);
    if bytes > limit {
        return Err(Error::Limit { what: what.into(), limit_name, limit, got: bytes });
    }
    Ok(())
}

/// Ok when a dispatch of `got` workgroups in one dimension is allowed.
pub(super) fn check_workgroups(gpu: &Gpu, what: &str, got: u64) -> Result<(), Error> {
    let limit = u64::from(gpu.limits().max_compute_workgroups_per_dimension);
    if got > limit {
        let limit_name = "max_compute_workgroups_per_dimension";
        return Err(Error::Limit { what: what.into(), limit_name, limit, got });
    }
    Ok(())
}
