//! The host shim finds mistakes: of each kernel of `tests/cuda/mistakes.cu` the right version passes with every seed, and the one
//! with a planted mistake is reported, or gives wrong numbers, with one of the first seeds. Only that makes the other tests' green
//! mean something.
#![cfg(feature = "cuda")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails and reports this way"
)]

mod cuda;
mod oracle;

use bytemuck::{Pod, Zeroable};
use cuda::host::{self, HostDevice};
use cuda::{STREAM, download, upload};
use duquant::kernels::cuda::{Address, Arch, Buffer, Chip, Device, Error, Kernel, Launch, Source};
use oracle::Random;
use std::process::Command;
use std::sync::Arc;

static SOURCES: [Source; 2] = [
    Source { name: "mistakes.cu", text: include_str!("cuda/mistakes.cu") },
    Source { name: "mistakes_sm90.cu", text: include_str!("cuda/mistakes_sm90.cu") },
];

/// Seeds within which a mistake must show.
const SEEDS: usize = 8;
/// Threads of a block, each of which gives one number.
const THREADS: usize = 64;
/// Bytes of shared memory.
const SHARED: u32 = 4 * THREADS as u32;
/// Words of the operand.
const WORDS: usize = 2 * THREADS;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Arguments {
    input: Address,
    out: Address,
    planted: u32,
    unused: u32,
}

/// How a mistake shows.
enum Shows {
    /// As numbers that are not those expected, with one of the seeds.
    Wrong,
    /// As an error with these words, with every seed.
    Says(&'static str),
}
use Shows::{Says, Wrong};

/// What thread `t` is to give.
type Expected = fn(&[u32], usize) -> u32;

fn other_warp(x: &[u32], t: usize) -> u32 {
    x[t ^ 32]
}

fn neighbour(x: &[u32], t: usize) -> u32 {
    x[t ^ 1]
}

fn own(x: &[u32], t: usize) -> u32 {
    x[t]
}

const MISTAKES: [(&str, Expected, Shows); 24] = [
    ("no_barrier_before_reading", other_warp, Wrong),
    ("no_barrier_for_the_upper_warp", |x, t| x[t % 32], Wrong),
    ("no_barrier_for_the_lower_warp", |x, t| x[32 + t % 32], Wrong),
    ("no_barrier_before_overwriting", |x, t| x[t ^ 32].wrapping_mul(6), Wrong),
    ("no_warp_barrier", neighbour, Wrong),
    ("no_wait_for_a_copy", other_warp, Wrong),
    ("no_barrier_after_the_wait", other_warp, Wrong),
    ("waits_for_one_group_too_few", other_warp, Wrong),
    ("copy_is_not_committed", other_warp, Says("asynchronous copies that were not committed")),
    ("copy_into_a_stage_that_is_read", other_warp, Wrong),
    ("unaligned_load", own, Says("a 16-byte load at")),
    ("unaligned_copy", own, Says("an asynchronous copy from")),
    // Words d[0] of the lower warp and d[1] of the upper one.
    ("unaligned_matrix_row", |x, t| x[32 * (t / 32) + t % 32], Says("load_matrix_x2 at")),
    ("lanes_at_different_instructions", neighbour, Says("its warp has diverged")),
    ("lanes_missing_at_a_shuffle", neighbour, Says("deadlock")),
    ("lanes_missing_at_the_index_of_their_warp", own, Says("deadlock")),
    ("barrier_not_reached_by_all", other_warp, Says("deadlock")),
    ("barrier_of_different_counts", other_warp, Says("a barrier is used for")),
    ("shared_memory_not_written", other_warp, Wrong),
    ("writes_behind_shared_memory", other_warp, Says("wrote to byte 256 of 256 bytes of shared memory")),
    ("writes_in_front_of_shared_memory", other_warp, Says("wrote to byte -4 of 256 bytes of shared memory")),
    ("relies_on_the_order_of_blocks", own, Wrong),
    ("no_fence_behind_the_barrier", own, Says("without fence_device between the last barrier and the count")),
    ("no_fence_behind_the_count", own, Says("before the thread that counted has called fence_device")),
];

/// Those of `mistakes_sm90.cu`.
const MISTAKES_SM90: [(&str, Expected, Shows); 6] = [
    ("barrier_not_published", own, Says("before barrier_init_fence and a meeting of the block")),
    ("barrier_used_before_the_block_met", own, Says("barrier")),
    ("bulk_copy_not_waited_for", own, Says("bulk copies that nobody waited for")),
    ("fewer_bytes_expected_than_copied", own, Says("16 bytes more than expected")),
    ("more_bytes_expected_than_copied", own, Says("deadlock")),
    ("more_registers_taken_than_given", own, Says("deadlock")),
];

/// What a kernel gives with each of the first seeds, blocks of `THREADS` words.
fn runs(entry: &'static str, planted: bool, blocks: usize, input: &[u32]) -> Vec<Result<Vec<u32>, Error>> {
    let newer = MISTAKES_SM90.iter().any(|(name, ..)| *name == entry);
    let (file, arch) = if newer { ("mistakes_sm90.cu", Arch::Sm90a) } else { ("mistakes.cu", Arch::Sm80) };
    let kernel = Kernel { file, entry, defines: Vec::new(), archs: &Arch::ALL, registers: 64 };
    let device: Arc<dyn Device> = Arc::new(HostDevice::with_sources(Chip::typical(arch), &SOURCES));
    let function = device.load(&kernel).unwrap();
    let d_in = upload(&device, input);
    let run = |_| {
        let out = Buffer::new(&device, "out", 4 * (blocks * THREADS) as u64)?;
        let arguments = Arguments { input: d_in.address(), out: out.address(), planted: planted.into(), unused: 0 };
        let launch = Launch::new(&function, [blocks as u32, 1, 1], THREADS as u32, SHARED, &arguments);
        // SAFETY: the operands have the words that the kernel reads and writes; where a mistake goes beyond them, the page behind
        // them ends this process, which is a child then.
        unsafe { device.launch(STREAM, &launch) }?;
        Ok(download(&out, blocks * THREADS))
    };
    (0..SEEDS).map(run).collect()
}

fn shim_is_here(test: &str) -> bool {
    match host::compiler() {
        Ok(_) => true,
        Err(fault) => {
            assert!(std::env::var_os("CI").is_none(), "{test}: {fault}");
            println!("skipped {test}: {fault}");
            false
        }
    }
}

fn operand() -> Vec<u32> {
    let mut random = Random::new(1);
    (0..WORDS).map(|_| random.next() as u32).collect()
}

#[test]
fn planted_mistakes_are_found() {
    if !shim_is_here("planted_mistakes_are_found") {
        return;
    }
    let input = operand();
    for (entry, number, shows) in MISTAKES.iter().chain(&MISTAKES_SM90) {
        let blocks = if entry.contains("blocks") { 5 } else { 1 };
        let expected: Vec<u32> = (0..blocks * THREADS).map(|i| number(&input, i % THREADS)).collect();
        for (seed, got) in runs(entry, false, blocks, &input).into_iter().enumerate() {
            assert_eq!(got.as_ref(), Ok(&expected), "{entry} without the mistake, seed {seed}");
        }
        let got = runs(entry, true, blocks, &input);
        match shows {
            Wrong => {
                let wrong = got.iter().filter(|got| got.as_ref() != Ok(&expected)).count();
                println!("{entry}: wrong with {wrong} of {SEEDS} seeds");
                assert!(wrong > 0, "{entry}: no seed showed the mistake");
            }
            Says(words) => {
                for (seed, got) in got.iter().enumerate() {
                    let said = got.as_ref().map_or_else(ToString::to_string, |_| "nothing".into());
                    assert!(said.contains(words), "{entry}, seed {seed}: expected \"{words}\", got \"{said}\"");
                }
                println!("{entry}: {}", got[0].as_ref().unwrap_err());
            }
        }
    }
}

/// Mistakes that touch a page that is not there; the process ends.
const FATAL: [(&str, Expected); 3] = [
    ("reads_far_behind_shared_memory", other_warp),
    ("reads_behind_the_operand", own),
    ("writes_behind_the_operand", own),
];
const CHILD: &str = "DUQUANT_SHIM_CHILD";

#[test]
fn a_touch_beyond_memory_ends_the_process_with_a_word() {
    let test = "a_touch_beyond_memory_ends_the_process_with_a_word";
    if !shim_is_here(test) {
        return;
    }
    let input = operand();
    if let Ok(entry) = std::env::var(CHILD) {
        let (entry, _) = FATAL.iter().find(|(name, _)| *name == entry).unwrap();
        runs(entry, true, 1, &input);
        return;
    }
    for (entry, number) in &FATAL {
        let expected: Vec<u32> = (0..THREADS).map(|t| number(&input, t)).collect();
        for got in runs(entry, false, 1, &input) {
            assert_eq!(got.as_ref(), Ok(&expected), "{entry} without the mistake");
        }
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, entry)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert_eq!(child.status.code(), Some(139), "{entry}: {said}");
        assert!(said.contains("host shim: signal 11 at address") && said.contains("thread "), "{entry}: {said}");
        println!("{entry}: {}", said.trim());
    }
}
