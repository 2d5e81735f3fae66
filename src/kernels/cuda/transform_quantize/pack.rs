//! A transform's numbers as the kernel wants them.

use super::super::{Address, Buffer, Device, Error};
use super::TransformShape;
use super::tiling::{Rotation, Tiling};
use crate::kernels::Transform;
use half::f16;
use std::sync::Arc;

/// The numbers of one [`Transform`] in device memory, packed for a plan of its shape on this chip.
#[derive(Debug)]
pub struct TransformTables {
    shape: TransformShape,
    rotations: Option<Buffer>,
    /// For each of the plan's tilings.
    places: Vec<Option<Buffer>>,
    inverse_smooth: Option<Buffer>,
}

impl TransformTables {
    pub(super) fn new(
        device: &Arc<dyn Device>,
        transform: &Transform,
        rotation: Option<&Rotation>,
        tilings: &[Tiling],
    ) -> Result<Self, Error> {
        let mut packed = Vec::new();
        if let Some(rotation) = rotation {
            for i in 0..transform.rotation_count() {
                if rotation.butterflies {
                    packed.extend(hadamard_fragment());
                } else {
                    pack_rotation(&mut packed, transform, i, rotation);
                }
            }
        }
        let places = tilings.iter().map(|tiling| upload(device, "permutations", &places(transform, tiling)));
        let smooth = transform.inverse_smooth.as_deref().unwrap_or_default();
        Ok(Self {
            shape: TransformShape::of(transform),
            rotations: upload(device, "rotations", &packed)?,
            places: places.collect::<Result<_, _>>()?,
            inverse_smooth: upload(device, "inverse_smooth", smooth)?,
        })
    }

    /// The shape of the transform.
    #[must_use]
    pub fn shape(&self) -> &TransformShape {
        &self.shape
    }

    /// Bytes of device memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let others = [&self.rotations, &self.inverse_smooth];
        others.into_iter().chain(&self.places).flatten().map(Buffer::bytes).sum()
    }

    pub(super) fn rotations(&self) -> Address {
        address(&self.rotations)
    }

    /// Of the plan's tiling number `tiling`.
    pub(super) fn places(&self, tiling: usize) -> Address {
        self.places.get(tiling).map_or(0, address)
    }

    pub(super) fn inverse_smooth(&self) -> Address {
        address(&self.inverse_smooth)
    }
}

fn address(buffer: &Option<Buffer>) -> Address {
    buffer.as_ref().map_or(0, Buffer::address)
}

fn upload<T: bytemuck::Pod>(device: &Arc<dyn Device>, what: &str, values: &[T]) -> Result<Option<Buffer>, Error> {
    if values.is_empty() { Ok(None) } else { Buffer::upload(device, what, values).map(Some) }
}

/// Where each permutation puts the channels of a tiling's segments, `[P, segments, rows]`: bytes from the start of the buffer of
/// rows, for the segment's first token. Rows beyond the channels have no place.
fn places(transform: &Transform, tiling: &Tiling) -> Vec<u32> {
    let (k, rows) = (transform.channels, tiling.rows);
    let stride = rows * (8 / tiling.tokens());
    let mut out = vec![u32::MAX; transform.permutation_count() * stride];
    for i in 0..transform.permutation_count() {
        // y[j] = x[permutation[j]]: channel permutation[j] goes to j.
        for (j, &from) in transform.permutation(i).iter().enumerate() {
            let (segment, row) = (j / rows, j % rows);
            // `row_of` of the kernel.
            let place = 16 * (row ^ (row >> 2 & 6)) + 2 * tiling.tokens() * segment;
            out[i * stride + from as usize] = place as u32;
        }
    }
    debug_assert!(k <= stride);
    out
}

/// One matrix of 16 x 16 as operand A of `mma.m16n8k16`: the four words of each lane, from its entry at fragment row `m` and
/// fragment column (`step`'s quarter `t`, number `i` of the lane's four).
fn fragment(entry: impl Fn(usize, usize, usize) -> f16) -> impl Iterator<Item = u16> {
    (0..32).flat_map(move |lane| {
        let (g, t) = (lane / 4, lane % 4);
        // Words: (row g, first pair), (row g + 8, first pair), (row g, second pair), (row g + 8, second pair).
        let at = |word: usize, i: usize| entry(g + 8 * (word % 2), t, 2 * (word / 2) + i).to_bits();
        (0..4).flat_map(|word| [at(word, 0), at(word, 1)]).collect::<Vec<_>>()
    })
}

/// Appends rotation `index`, transposed and padded: for each warp of a tile, its strips of 16 rows, and for each of them the
/// steps of 16 columns. Lane `t` of a step has channels `32 (step / 2) + 8 t + 4 (step % 2) ..+ 4`: half of the octet that it
/// holds of the tokens.
fn pack_rotation(out: &mut Vec<u16>, transform: &Transform, index: usize, rotation: &Rotation) {
    let (block, size) = (transform.block, rotation.size as usize);
    let r = transform.rotation(index);
    // A Hadamard's entries are signs, and the kernel multiplies by what they lack.
    let value = |x: f32| f16::from_f32(if transform.hadamard { x.signum() } else { x });
    let padded = |from: usize, to: usize| {
        let inside = from < rotation.span && to < rotation.span && from / block == to / block;
        if inside { value(r[from % block * block + to % block]) } else { f16::ZERO }
    };
    for strip in 0..size / 16 {
        for step in 0..size / 16 {
            out.extend(fragment(|m, t, i| padded(32 * (step / 2) + 8 * t + 4 * (step % 2) + i, 16 * strip + m)));
        }
    }
}

/// The Sylvester matrix over bits 0, 1, 3 and 4 of the channel. Columns are those of any step; row `m` is the channel with bit 3
/// of `m` as bit 3 and bit 2 as bit 4: eight neighbouring rows of the fragment lie in different banks then.
fn hadamard_fragment() -> impl Iterator<Item = u16> {
    fragment(|m, t, i| {
        let row = m % 4 + (m / 4 % 2) * 16 + (m / 8) * 8;
        let column = 8 * t + i;
        if (row & column).count_ones().is_multiple_of(2) { f16::ONE } else { f16::NEG_ONE }
    })
}
