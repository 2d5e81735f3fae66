//! Keys and values in pages of 64 tokens, quantized per token and head or not.

use super::super::{Affine, Error as KernelError};
use super::checks::{check_range, unsupported};
use super::{Address, Buffer, Device, Dtype, Error};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// Tokens of a page.
pub const PAGE: usize = 64;

/// How one layer's keys and values lie in memory, after RoPE and Hadamard.
///
/// `keys` and `values` are `[pages, Hkv, 64]` rows of `D` numbers. Codes of up to 4 bits lie eight to a little-endian `u32`: of word
/// `w`, nibble `i` is channel `8 w + 2 i` and nibble `4 + i` channel `8 w + 2 i + 1`, for `i` below 4, so that a shift and a mask
/// give two neighbours as the halves of a word. Wider codes lie one to a byte, floating-point numbers as `float` says. `params` is
/// `[pages, Hkv, 64]` of four words: the key's scale (`f32`), its zero point in the low half and the sum of its codes in the high
/// half of a word, then the value's.
///
/// Which page holds which tokens is the host's business: a table of page numbers ([`Sequence`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvLayout {
    /// Key and value heads `Hkv`.
    pub kv_heads: usize,
    /// Channels of a head `D`: 64, 80, 96, 128 or 256.
    pub head_dim: usize,
    /// Pages of all sequences together.
    pub pages: usize,
    /// Quantizer of keys (and of queries, which meet them), per token and head. `None` keeps floating point.
    pub key: Option<Affine>,
    /// Quantizer of values, per token and head. `None` keeps floating point.
    pub value: Option<Affine>,
    /// Type of keys and values that are not quantized: half precision or bfloat16.
    pub float: Dtype,
}

/// The head dimensions that there are kernels for.
pub const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 256];

impl KvLayout {
    /// Bytes of the keys.
    #[must_use]
    pub fn key_bytes(&self) -> u64 {
        self.rows() * self.head_dim as u64 * u64::from(self.key_bits()) / 8
    }

    /// Bytes of the values.
    #[must_use]
    pub fn value_bytes(&self) -> u64 {
        self.rows() * self.head_dim as u64 * u64::from(self.value_bits()) / 8
    }

    /// Bytes of the scales, zero points and sums.
    #[must_use]
    pub fn param_bytes(&self) -> u64 {
        if self.key.is_some() || self.value.is_some() { 16 * self.rows() } else { 0 }
    }

    /// Bits that a number of a key takes: 4, 8 or 16. The sources call it `KEY_BITS`.
    #[must_use]
    pub fn key_bits(&self) -> u32 {
        bits(self.key)
    }

    /// Bits that a number of a value takes: 4, 8 or 16. The sources call it `VALUE_BITS`.
    #[must_use]
    pub fn value_bits(&self) -> u32 {
        bits(self.value)
    }

    fn rows(&self) -> u64 {
        (self.pages * self.kv_heads * PAGE) as u64
    }

    /// Ok when there are kernels for such a cache.
    pub(super) fn check(&self) -> Result<(), Error> {
        if !HEAD_DIMS.contains(&self.head_dim) {
            return unsupported("head_dim", "64, 80, 96, 128 or 256", self.head_dim);
        }
        if self.float == Dtype::F32 {
            return unsupported("float", "F16 or Bf16", "F32");
        }
        for affine in [self.key, self.value].into_iter().flatten() {
            Affine::new(affine.bits, affine.clip)?;
        }
        check_range("kv_heads", self.kv_heads, 1, 1 << 12)?;
        check_range("pages", self.pages, 1, 1 << 22)
    }

    /// Ok when queries of `heads` heads meet this cache.
    pub(super) fn check_heads(&self, heads: usize) -> Result<(), Error> {
        self.check()?;
        if heads == 0 || heads > 1 << 12 || !heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a multiple of {} key heads, at most 4096", self.kv_heads);
            return Err(KernelError::Unsupported { what: "heads", expected, got: heads.to_string() }.into());
        }
        Ok(())
    }
}

fn bits(affine: Option<Affine>) -> u32 {
    match affine {
        Some(affine) if affine.bits <= 4 => 4,
        Some(_) => 8,
        None => 16,
    }
}

/// A sequence of a call, in device memory, so that a captured graph serves every length: an array of them is an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Sequence {
    /// Row of its first token among the call's tokens.
    pub first: u32,
    /// Tokens of the call that are its own; 0 for none.
    pub tokens: u32,
    /// Tokens that the cache held before the call.
    pub position: u32,
    /// Where its pages begin in the page table: the page of token `p` is `page_table[table + p / 64]`.
    pub table: u32,
}

/// The host's memory for the keys and values of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvOperand {
    /// [`KvLayout::key_bytes`] of keys.
    pub keys: Address,
    /// [`KvLayout::value_bytes`] of values.
    pub values: Address,
    /// [`KvLayout::param_bytes`] of scales, zero points and sums; anything where there are none.
    pub params: Address,
}

/// Buffers of one layer's keys and values, for callers without an allocator of their own.
#[derive(Debug)]
pub struct KvCache {
    layout: KvLayout,
    keys: Buffer,
    values: Buffer,
    params: Buffer,
}

impl KvCache {
    /// Room for the pages of `layout`.
    ///
    /// # Errors
    /// [`Error::Kernel`] for a layout without kernels, [`Error::OutOfMemory`].
    pub fn new(device: &Arc<dyn Device>, layout: KvLayout) -> Result<Self, Error> {
        layout.check()?;
        let keys = Buffer::new(device, "keys", layout.key_bytes())?;
        let values = Buffer::new(device, "values", layout.value_bytes())?;
        let params = Buffer::new(device, "cache parameters", layout.param_bytes().max(16))?;
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
    pub fn operand(&self) -> KvOperand {
        KvOperand { keys: self.keys.address(), values: self.values.address(), params: self.params.address() }
    }
}

/// How the queries of a call lie in memory: `[T, H]` rows.
///
/// Where keys are quantized a row of `codes` is `D` codes, one a byte, and `params` has its scale (`f32`), zero point and sum of
/// codes (`i32`) and an unused word. Otherwise a row of `codes` is `D` numbers of the cache's `float`, and there are no `params`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    /// Bytes of the codes.
    #[must_use]
    pub fn code_bytes(&self) -> u64 {
        (self.tokens_max * self.heads * self.head_dim) as u64 * if self.quantized { 1 } else { 2 }
    }

    /// Bytes of the scales, zero points and sums.
    #[must_use]
    pub fn param_bytes(&self) -> u64 {
        if self.quantized { 16 * (self.tokens_max * self.heads) as u64 } else { 0 }
    }
}

/// The host's memory for the queries of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryOperand {
    /// [`QueryLayout::code_bytes`].
    pub codes: Address,
    /// [`QueryLayout::param_bytes`]; anything where there are none.
    pub params: Address,
}
