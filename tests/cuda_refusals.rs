//! What cannot be is refused with words, whatever was asked for: descriptors and calls drawn from the numbers that overflow, on a
//! device that compiles nothing and looks at what it is to launch.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod oracle;

use duquant::kernels::cuda::{
    Address, Arch, Chip, Device, Dtype, Error, Function, GemmTile, GemmW4A4Desc, GemmW4A4Plan, Kernel, Launch,
    MatrixProduct, SourceOperand, Stream, TokenForm, TokenSource, TokensOperand, TransformOutput,
    TransformQuantizeDesc, TransformQuantizePlan, TransformShape, TransformTarget, WeightsOperand,
};
use duquant::kernels::{Affine, QuantizedMatrix, Transform};
use oracle::Random;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A device that only looks.
#[derive(Debug)]
struct Onlooker {
    chip: Chip,
    launches: AtomicUsize,
}

fn onlooker(arch: Arch, multiprocessors: u32) -> Arc<Onlooker> {
    let chip = Chip { multiprocessors, ..Chip::typical(arch) };
    Arc::new(Onlooker { chip, launches: AtomicUsize::new(0) })
}

impl Device for Onlooker {
    fn chip(&self) -> Chip {
        self.chip
    }

    fn name(&self) -> String {
        "an onlooker".into()
    }

    fn load(&self, kernel: &Kernel) -> Result<Arc<Function>, Error> {
        assert!(kernel.archs.contains(&self.chip.arch), "{kernel} is not for this chip");
        Ok(Arc::new(Function { kernel: kernel.clone(), handle: 0, keep: Box::new(()) }))
    }

    unsafe fn launch(&self, _: Stream, launch: &Launch) -> Result<(), Error> {
        let Launch { grid, block, shared, .. } = *launch;
        assert!((1..=i32::MAX as u32).contains(&grid[0]) && grid[1..] == [1, 1], "{grid:?}");
        assert!(block.is_multiple_of(32) && (32..=1024).contains(&block), "{block}");
        assert!(shared <= self.chip.arch.shared_per_block(), "{shared}");
        self.launches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    unsafe fn matrix_product(&self, _: Stream, _: &MatrixProduct) -> Result<(), Error> {
        panic!("nobody asks for it")
    }

    fn allocate(&self, _: &str, _: u64) -> Result<Address, Error> {
        Ok(4096)
    }

    fn free(&self, _: Address, _: u64) {}

    fn write(&self, _: Address, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }

    fn read(&self, _: Address, _: &mut [u8]) -> Result<(), Error> {
        Ok(())
    }

    fn copy(&self, _: Stream, _: Address, _: Address, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn fill(&self, _: Stream, _: Address, _: u8, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn synchronize(&self, _: Stream) -> Result<(), Error> {
        Ok(())
    }
}

/// Sizes, plausible or not.
fn size() -> impl Strategy<Value = usize> {
    let edges = [1 << 16, 1 << 24, 9_544_371, 561_433, 1 << 31, 1 << 32, 1 << 33, 1 << 62, usize::MAX - 1];
    let around = prop::sample::select(edges.to_vec()).prop_flat_map(|edge| edge - 1..=edge + 1);
    prop_oneof![3 => 1..=300_usize, 2 => 0..=70_000_usize, 2 => around]
}

fn address() -> impl Strategy<Value = Address> {
    prop_oneof![12 => (1..=1_u64 << 40).prop_map(|a| 16 * a), 1 => Just(0), 1 => any::<u64>(), 1 => Just(u64::MAX - 15)]
}

fn dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16])
}

fn chip() -> impl Strategy<Value = Arc<Onlooker>> {
    let few = prop_oneof![Just(0_u32), 1..=9_u32, 10..=300_u32];
    (prop::sample::select(Arch::ALL.to_vec()), few).prop_map(|(arch, multiprocessors)| onlooker(arch, multiprocessors))
}

/// An error says what was expected.
fn check_words(error: &Error) -> Result<(), TestCaseError> {
    let words = error.to_string();
    prop_assert!(words.contains("expected") && words.contains("got"), "{words}");
    Ok(())
}

fn usable(address: Address) -> bool {
    address != 0 && address.is_multiple_of(16)
}

/// Runs `enqueue`: a good call is launched once, unless there is nothing to do; a bad one is refused with words.
fn check_call(
    device: &Onlooker,
    good: bool,
    tokens: usize,
    enqueue: impl FnOnce() -> Result<(), Error>,
) -> Result<(), TestCaseError> {
    let before = device.launches.load(Ordering::Relaxed);
    let outcome = enqueue();
    let launches = device.launches.load(Ordering::Relaxed) - before;
    prop_assert_eq!(outcome.is_ok(), good, "{:?}", outcome);
    prop_assert_eq!(launches, usize::from(good && tokens > 0));
    outcome.err().map_or(Ok(()), |error| check_words(&error))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_gemm_is_planned_or_refused(
        device in chip(),
        (m_max, n, k) in (size(), size(), size()),
        (weight_bits, activation_bits) in (0_u32..=6, prop_oneof![4 => 1_u32..=9, 1 => any::<u32>()]),
        (out, bias, accumulate) in (dtype(), any::<bool>(), any::<bool>()),
        tile in prop::option::of(prop_oneof![
            prop::sample::select(vec!["stream:8", "stream:64", "64x64", "128x256", "128x8"]).prop_map(str::to_owned),
            "(stream:)?[0-9]{1,11}(x[0-9]{0,11})?",
        ]),
        addresses in prop::array::uniform6(address()),
        tokens in size(),
        exact in any::<bool>(),
    ) {
        let desc = GemmW4A4Desc { m_max, n, k, weight_bits, activation_bits, out, bias, accumulate };
        let planned = match &tile {
            None => GemmW4A4Plan::plan(device.as_ref(), &desc),
            Some(tile) => tile.parse::<GemmTile>().and_then(|tile| GemmW4A4Plan::plan_with(device.as_ref(), &desc, tile)),
        };
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => return check_words(&error),
        };
        prop_assert!(m_max > 0 && n > 0 && k > 0 && (2..=4).contains(&weight_bits));
        prop_assert!(k as u64 * ((1 << weight_bits) - 1) * ((1 << activation_bits) - 1) <= i32::MAX as u64);
        let tokens = if exact { m_max } else { tokens };
        prop_assert!(plan.workspace_bytes() < 1 << 40, "{}", plan.workspace_bytes());
        let [codes, params, weights, channels, y, workspace] = addresses;
        let good = tokens <= m_max
            && addresses[..5].iter().all(|&address| usable(address))
            && (plan.workspace_bytes() == 0 || usable(workspace));
        let (x, weights) = (TokensOperand { codes, params }, WeightsOperand { weights, channels });
        check_call(&device, good, tokens, || {
            // SAFETY: nothing runs.
            unsafe { plan.enqueue(device.as_ref(), Stream::DEFAULT, tokens, x, weights, y, workspace) }
        })?;
    }

    #[test]
    fn a_prologue_is_planned_or_refused(
        device in chip(),
        (m_max, channels, count) in (size(), size(), 0_usize..=40),
        (block, rotations) in (prop_oneof![4 => 0_usize..=300, 1 => size()], prop_oneof![4 => 0_usize..=4, 1 => size()]),
        (hadamard, smooth, fits) in (any::<bool>(), any::<bool>(), any::<bool>()),
        affine in prop::option::weighted(0.9, (0_u32..=9, prop::sample::select(vec![0.9, 1.0, 0.0, 1.1, f32::NAN]))),
        epsilon in prop::sample::select(vec![1e-5, 0.0, -1.0, f32::NAN, f32::INFINITY]),
        (source, operand, target) in (0_usize..3, 0_usize..6, 0_usize..3),
        input in dtype(),
        form in prop::option::of(prop::sample::select(vec![TokenForm::Fragments4, TokenForm::Fragments8, TokenForm::Tiles8])),
        (at, tokens) in (prop::array::uniform4(address()), size()),
    ) {
        let channels = if fits { block.saturating_mul(count) } else { channels };
        let source = [TokenSource::Tokens, TokenSource::RmsNorm { epsilon }, TokenSource::SiluMul][source];
        let target =
            [TransformTarget::Codes, TransformTarget::Float(Dtype::F16), TransformTarget::Dequantized(Dtype::F32)][target];
        let shape = TransformShape { channels, block, rotations, hadamard, smooth };
        let affine = affine.map(|(bits, clip)| Affine { bits, clip, symmetric: false });
        let desc = TransformQuantizeDesc { m_max, shape, affine, source, input, target };
        let planned = match form {
            None => TransformQuantizePlan::plan(device.as_ref(), &desc),
            Some(form) => TransformQuantizePlan::plan_as(device.as_ref(), &desc, form),
        };
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => return check_words(&error),
        };
        prop_assert!(m_max > 0 && channels > 0);
        prop_assert!(rotations == 0 || block > 0 && channels % block == 0);
        // Tables of a small transform, and of another shape where it is not one.
        let small = channels <= 70_000 && (rotations == 0 && block == 0 || rotations > 0);
        if !small || hadamard {
            return Ok(());
        }
        let transform = Transform {
            block,
            rotations: vec![0.5; rotations * block * block],
            permutations: (1..rotations).flat_map(|_| 0..channels as u32).collect(),
            inverse_smooth: smooth.then(|| vec![1.0; channels]),
            ..Transform::identity(channels)
        };
        let shared: Arc<dyn Device> = device.clone();
        let tables = plan.pack(&shared, &transform).unwrap();
        let other = Transform { inverse_smooth: (!smooth).then(|| vec![1.0; channels]), ..transform };
        check_words(&plan.pack(&shared, &other).unwrap_err())?;

        let [x, weight, codes, params] = at;
        let operands =
            [SourceOperand::Tokens(x), SourceOperand::RmsNorm { x, weight }, SourceOperand::SiluMul(x)];
        let (kind, wide) = (operand % 3, operand / 3 == 0);
        let (source_good, target_good) = (
            matches!(
                (source, operands[kind]),
                (TokenSource::Tokens, SourceOperand::Tokens(_))
                    | (TokenSource::RmsNorm { .. }, SourceOperand::RmsNorm { .. })
                    | (TokenSource::SiluMul, SourceOperand::SiluMul(_))
            ),
            wide == (target == TransformTarget::Codes),
        );
        let out = if wide {
            TransformOutput::Codes(TokensOperand { codes, params })
        } else {
            TransformOutput::Values(codes)
        };
        let good = source_good
            && target_good
            && tokens <= m_max
            && usable(x)
            && usable(codes)
            && (kind != 1 || usable(weight))
            && (!wide || usable(params));
        check_call(&device, good, tokens, || {
            // SAFETY: nothing runs.
            unsafe { plan.enqueue(device.as_ref(), Stream::DEFAULT, tokens, operands[kind], &tables, out) }
        })?;
    }

    #[test]
    fn weights_and_transforms_that_are_broken_are_refused(
        (n, k, seed) in (1_usize..=100, 1_usize..=300, any::<u64>()),
        fault in 0..12,
        huge in size(),
    ) {
        let device = onlooker(Arch::Sm86, 6);
        let shared: Arc<dyn Device> = device.clone();
        let mut random = Random::new(seed);
        let desc = GemmW4A4Desc {
            m_max: 4, n, k, weight_bits: 4, activation_bits: 4, out: Dtype::F16, bias: false, accumulate: false,
        };
        let plan = GemmW4A4Plan::plan(device.as_ref(), &desc).unwrap();
        let packed = vec![0x5a; n * QuantizedMatrix::row_bytes_of(k, 4)];
        let mut matrix = QuantizedMatrix { n, k, bits: 4, packed, scale: vec![1.0; n], zero_point: vec![3; n] };
        plan.pack(&shared, &matrix).unwrap();
        let mut bias = None;
        match fault {
            0 => matrix.n = if huge == n { 0 } else { huge },
            1 => matrix.k = if huge == k { 0 } else { huge },
            2 => matrix.bits = [0, 1, 2, 3, 5, 8, 9, u32::MAX][random.below(8)],
            3 => matrix.packed.truncate(random.below(matrix.packed.len())),
            4 => matrix.packed.push(0),
            5 => matrix.scale[random.below(n)] = [0.0, -1.0, f32::NAN, f32::INFINITY][random.below(4)],
            6 => matrix.zero_point[random.below(n)] = 16,
            7 => drop(matrix.scale.pop()),
            8 => matrix.zero_point.push(0),
            9 => bias = Some(vec![0.0; n]),
            _ => {
                let mut transform = random.transform(16 * n, 16, 1, true);
                let desc = TransformQuantizeDesc {
                    m_max: 4,
                    shape: TransformShape::of(&transform),
                    affine: Some(Affine::new(4, 1.0).unwrap()),
                    source: TokenSource::Tokens,
                    input: Dtype::F16,
                    target: TransformTarget::Codes,
                };
                let plan = TransformQuantizePlan::plan(device.as_ref(), &desc).unwrap();
                plan.pack(&shared, &transform).unwrap();
                match random.below(8) {
                    0 => transform.block = if huge == 16 { 0 } else { huge },
                    1 => transform.channels = if huge == 16 * n { 0 } else { huge },
                    2 => (transform.channels, transform.block) = (huge.max(17 * n), huge.max(17 * n)),
                    3 => drop(transform.rotations.pop()),
                    4 => transform.permutations[0] = transform.permutations[1],
                    5 => transform.permutations[0] = u32::MAX,
                    6 => transform.inverse_smooth = Some(vec![1.0; 3]),
                    _ => transform.rotations[7] = f32::NAN,
                }
                return plan.pack(&shared, &transform).map_or_else(|_| Ok(()), |_| Err(TestCaseError::fail("packed")));
            }
        }
        prop_assert!(plan.pack_stacked(&shared, &[&matrix], bias.as_deref()).is_err());
    }
}
