//! Plans of attention, its cache, embeddings and tokens for any descriptor, however silly: a plan or an error that says what was
//! expected, never a panic; and what a plan enqueues is a launch that a device takes, in a workspace that has room for it.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

use duquant::kernels::Affine;
use duquant::kernels::cuda::{
    Address, Arch, ArgmaxDesc, ArgmaxPlan, AttentionDesc, AttentionOperands, AttentionPlan, Chip, Device, Dtype,
    EmbeddingDesc, EmbeddingPlan, Error, Function, HEAD_DIMS, Kernel, KvLayout, KvOperand, Launch, MatrixProduct,
    QueryOperand, RopeHadamardQuantizeDesc, RopeHadamardQuantizeOperands, RopeHadamardQuantizePlan, Stream, kernels,
};
use proptest::prelude::*;
use std::sync::{Arc, Mutex, OnceLock};

/// A chip without memory: kernels are not compiled, and launches are looked at.
struct Paper {
    chip: Chip,
    launched: Mutex<Vec<Launch>>,
}

impl Paper {
    fn new(arch: Arch, multiprocessors: u32) -> Self {
        Self { chip: Chip { multiprocessors, ..Chip::typical(arch) }, launched: Mutex::default() }
    }

    fn last(&self) -> Option<Launch> {
        self.launched.lock().unwrap().pop()
    }
}

fn no_memory<T>() -> Result<T, Error> {
    Err(Error::OutOfMemory { what: "paper".into(), bytes: 0 })
}

impl Device for Paper {
    fn chip(&self) -> Chip {
        self.chip
    }

    fn name(&self) -> String {
        "paper".into()
    }

    fn load(&self, kernel: &Kernel) -> Result<Arc<Function>, Error> {
        static KERNELS: OnceLock<Vec<Kernel>> = OnceLock::new();
        assert!(KERNELS.get_or_init(kernels).contains(kernel), "{kernel} is not among the kernels that are checked");
        assert!(kernel.archs.contains(&self.chip.arch), "{kernel} is not for this chip");
        Ok(Arc::new(Function { kernel: kernel.clone(), handle: 0, keep: Box::new(()) }))
    }

    unsafe fn launch(&self, _stream: Stream, launch: &Launch) -> Result<(), Error> {
        if launch.is_empty() {
            return Ok(());
        }
        let [x, y, z] = launch.grid;
        let kernel = &launch.function.kernel;
        assert!(x < 1 << 31 && y < 1 << 16 && z < 1 << 16, "{kernel}: no driver takes a grid of {:?}", launch.grid);
        assert!(launch.shared <= self.chip.arch.shared_per_block(), "{kernel} wants {} bytes", launch.shared);
        assert!(u64::from(launch.block) * u64::from(kernel.registers) <= 65_536, "{kernel} does not fit a block");
        self.launched.lock().unwrap().push(launch.clone());
        Ok(())
    }

    unsafe fn matrix_product(&self, _stream: Stream, _product: &MatrixProduct) -> Result<(), Error> {
        no_memory()
    }

    fn allocate(&self, _what: &str, _bytes: u64) -> Result<Address, Error> {
        no_memory()
    }

    fn free(&self, _address: Address, _bytes: u64) {}

    fn write(&self, _address: Address, _bytes: &[u8]) -> Result<(), Error> {
        no_memory()
    }

    fn read(&self, _address: Address, _bytes: &mut [u8]) -> Result<(), Error> {
        no_memory()
    }

    fn copy(&self, _stream: Stream, _from: Address, _to: Address, _bytes: u64) -> Result<(), Error> {
        no_memory()
    }

    fn fill(&self, _stream: Stream, _address: Address, _byte: u8, _bytes: u64) -> Result<(), Error> {
        no_memory()
    }

    fn synchronize(&self, _stream: Stream) -> Result<(), Error> {
        Ok(())
    }
}

/// An error says what was expected and what came.
fn told<T>(result: Result<T, Error>) -> Option<T> {
    result.map_err(|fault| assert!(fault.to_string().contains("expected"), "{fault}")).ok()
}

fn chips() -> impl Strategy<Value = (Arch, u32)> {
    (prop::sample::select(Arch::ALL.to_vec()), prop_oneof![1_u32..=9, 1_u32..=200])
}

/// Counts, most of them good ones; the others at the edges of what integers hold.
fn count(most: usize) -> impl Strategy<Value = usize> {
    let edges = vec![0, 1, (1 << 16) - 1, 1 << 16, 1 << 22, 1 << 24, 1 << 31, (1 << 32) - 1, 1 << 32, usize::MAX];
    prop_oneof![12 => 1..=most, 1 => prop::sample::select(edges)]
}

fn quantizer() -> impl Strategy<Value = Option<Affine>> {
    let bits = prop_oneof![12 => Just(4_u32), 6 => 2_u32..=8, 1 => prop::sample::select(vec![0, 1, 9, 32, u32::MAX])];
    let clip = prop_oneof![20 => Just(0.9_f32), 1 => prop::sample::select(vec![0.0, -1.0, f32::NAN, f32::INFINITY])];
    prop_oneof![
        4 => (bits, clip, any::<bool>()).prop_map(|(bits, clip, symmetric)| Some(Affine { bits, clip, symmetric })),
        1 => Just(None)
    ]
}

fn dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16])
}

prop_compose! {
    fn cache()(
        kv_heads in count(12),
        head_dim in prop_oneof![9 => prop::sample::select(HEAD_DIMS.to_vec()), 1 => count(300)],
        pages in count(5000),
        (key, value) in prop_oneof![3 => quantizer().prop_map(|both| (both, both)), 1 => (quantizer(), quantizer())],
        float in prop_oneof![9 => prop::sample::select(vec![Dtype::F16, Dtype::Bf16]), 1 => Just(Dtype::F32)],
    ) -> KvLayout {
        KvLayout { kv_heads, head_dim, pages, key, value, float }
    }
}

const QUERIES: QueryOperand = QueryOperand { codes: 16, params: 16 };
const CACHE: KvOperand = KvOperand { keys: 16, values: 16, params: 16 };

/// An address, seldom one that no plan takes.
fn address() -> impl Strategy<Value = Address> {
    prop_oneof![30 => Just(16_u64), 1 => prop::sample::select(vec![0, 1, 8, 24, u64::MAX])]
}

/// The parts of a decode launch have room in the workspace, behind the counters.
fn check_decode(launch: &Launch, head_dim: usize, workspace: u64) {
    let [splits, heads, sequences] = launch.grid.map(u64::from);
    // Behind the fields that both kernels share: row tiles, and where parts begin.
    let parts: u32 = bytemuck::pod_read_unaligned(&launch.arguments()[100..104]);
    assert!(4 * heads * sequences <= u64::from(parts), "{:?}: counters end at {parts}", launch.grid);
    let part = 8 * (head_dim as u64 + 2) * 4;
    let used = if splits == 1 { 0 } else { splits * heads * sequences * part };
    assert!(u64::from(parts) + used <= workspace, "{:?}: {used} bytes of parts in {workspace}", launch.grid);
    assert!(splits <= 128, "the last block holds the weights of 128 parts");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn attention_is_planned_or_refused(
        (arch, multiprocessors) in chips(),
        cache in cache(),
        heads in prop_oneof![4 => (1_usize..=40).prop_map(Ok), 1 => count(64).prop_map(Err)],
        (tokens_max, sequences_max, context_max) in (count(5000), count(300), count(1 << 20)),
        window in prop::option::of(count(5000)),
        out in dtype(),
        (tokens, sequences, longest) in (count(5000), count(300), count(5000)),
        at: [bool; 2],
        (first, second) in (address(), address()),
    ) {
        // A group of query heads a key head, or any number.
        let heads = heads.map_or_else(|any| any, |group| group * cache.kv_heads.min(1 << 20));
        let device = Paper::new(arch, multiprocessors);
        let desc = AttentionDesc { heads, tokens_max, sequences_max, context_max, window, out, cache };
        let Some(plan) = told(AttentionPlan::plan(&device, &desc)) else { return Ok(()) };
        let (workspace, _) = (plan.workspace_bytes(), plan.out_bytes());
        let operands = AttentionOperands {
            queries: QueryOperand { codes: if at[0] { first } else { 16 }, ..QUERIES },
            cache: KvOperand { params: if at[1] { first } else { 16 }, ..CACHE },
            sequences: 16,
            page_table: second,
            out: 16,
            workspace: 16,
        };
        // As they come, and brought into range.
        let longest_of = |tokens: usize| longest.min(tokens).min(context_max);
        for (tokens, sequences, longest) in [
            (tokens, sequences, longest),
            (tokens.min(tokens_max), sequences.min(sequences_max), longest_of(tokens.min(tokens_max))),
            (tokens.min(tokens_max), sequences.min(sequences_max), longest_of(tokens.min(tokens_max)).min(4)),
        ] {
            let _ = told(plan.kernel(longest));
            // SAFETY: nothing runs.
            let done = unsafe { plan.enqueue(&device, Stream::DEFAULT, tokens, sequences, longest, &operands) };
            let fits = tokens <= tokens_max && sequences <= sequences_max && longest <= tokens && longest <= context_max;
            prop_assert!(fits || done.is_err());
            let done = told(done);
            if let (Some(()), Some(launch)) = (done, device.last()) {
                let kernel = &launch.function.kernel;
                prop_assert_eq!(plan.kernel(longest).unwrap(), kernel.to_string());
                if kernel.entry == "attention_decode" {
                    check_decode(&launch, cache.head_dim, workspace);
                }
            }
        }
    }

    #[test]
    fn rope_is_planned_or_refused(
        (arch, multiprocessors) in chips(),
        cache in cache(),
        heads in prop_oneof![4 => (1_usize..=4096).prop_map(Ok), 1 => count(64).prop_map(Err)],
        (tokens_max, sequences_max, positions) in (count(1 << 22), count(300), count(1 << 20)),
        input in dtype(),
        (tokens, sequences) in (count(1 << 22), count(300)),
        at in address(),
    ) {
        let heads = heads.map_or_else(|any| any, |group| group * cache.kv_heads.min(1 << 20));
        let device = Paper::new(arch, multiprocessors);
        let desc = RopeHadamardQuantizeDesc { heads, tokens_max, sequences_max, positions, input, cache };
        let Some(plan) = told(RopeHadamardQuantizePlan::plan(&device, &desc)) else { return Ok(()) };
        let _ = (plan.queries().code_bytes(), plan.queries().param_bytes(), plan.kernel(tokens));
        let operands = RopeHadamardQuantizeOperands {
            qkv: 16,
            rope: at,
            sequences: 16,
            page_table: 16,
            queries: QUERIES,
            cache: CACHE,
        };
        for (tokens, sequences) in [(tokens, sequences), (tokens.min(tokens_max), sequences.min(sequences_max))] {
            // SAFETY: nothing runs.
            let done = unsafe { plan.enqueue(&device, Stream::DEFAULT, tokens, sequences, &operands) };
            let fits = tokens <= tokens_max && sequences <= sequences_max;
            // A call that fits the plan is refused for its operands alone.
            prop_assert_eq!(done.is_ok(), fits && at == 16, "{:?}", done);
            told(done);
            if let Some(launch) = device.last() {
                let threads = u64::from(launch.grid[0]) * u64::from(launch.block);
                prop_assert!(threads / 32 <= u64::from(u32::MAX), "warps are counted in 32 bits");
            }
        }
    }

    #[test]
    fn embeddings_and_tokens_are_planned_or_refused(
        (arch, multiprocessors) in chips(),
        (m_max, vocabulary, channels) in (count(5000), count(200_000), count(20_000)),
        (table, output) in (dtype(), dtype()),
        tokens in count(5000),
        at in address(),
    ) {
        let device = Paper::new(arch, multiprocessors);
        let good = tokens <= m_max && at == 16;
        let desc = EmbeddingDesc { m_max, vocabulary, channels, table, output };
        if let Some(plan) = told(EmbeddingPlan::plan(&device, &desc)) {
            // SAFETY: nothing runs.
            let done = unsafe { plan.enqueue(&device, Stream::DEFAULT, tokens, 16, 16, at) };
            prop_assert_eq!(done.is_ok(), good);
            told(done);
        }
        if let Some(plan) = told(ArgmaxPlan::plan(&device, &ArgmaxDesc { m_max, columns: vocabulary, input: table })) {
            // SAFETY: nothing runs.
            let done = unsafe { plan.enqueue(&device, Stream::DEFAULT, tokens, 16, 16, None, at) };
            prop_assert_eq!(done.is_ok(), good);
            told(done);
        }
    }
}
