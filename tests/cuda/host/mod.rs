//! A device that runs the CUDA sources on this machine's processor: g++ compiles each kernel with `host.cuh` in place of PTX.

use duquant::kernels::cuda::{
    Address, Chip, Device, Dtype, Error, Function, Kernel, Launch, MatrixProduct, SOURCES, Source, Stream,
};
use half::{bf16, f16};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

const HOST_SOURCES: &[&str] = &[
    include_str!("host.cuh"),
    include_str!("host_threads.cuh"),
    include_str!("host_matrix.cuh"),
    include_str!("host_sm90.cuh"),
];

/// Of `HostLaunch` in `host.cuh`.
#[repr(C)]
struct HostLaunch {
    grid: [u32; 3],
    block: u32,
    shared: u32,
    argument_bytes: u32,
    seed: u64,
}

type Entry = unsafe extern "C" fn(*const c_void, *const HostLaunch) -> *const c_char;

/// A chip on the host. Memory ends at a page that cannot be touched, so that a kernel that reads or writes too far ends the test
/// process with a word about the thread that did it.
pub(crate) struct HostDevice {
    chip: Chip,
    sources: &'static [Source],
    functions: Mutex<HashMap<Kernel, Arc<Function>>>,
    seed: AtomicU64,
}

impl HostDevice {
    pub(crate) fn new(chip: Chip) -> Self {
        Self::with_sources(chip, &[])
    }

    /// A chip that also runs kernels of `sources`, files of `tests/cuda`.
    pub(crate) fn with_sources(chip: Chip, sources: &'static [Source]) -> Self {
        Self { chip, sources, functions: Mutex::default(), seed: AtomicU64::new(0) }
    }
}

fn driver_error(what: &str, message: impl ToString) -> Error {
    Error::Driver { what: what.into(), message: message.to_string() }
}

/// The C++ compiler: `$CXX`, or `g++`.
pub(crate) fn compiler() -> Result<&'static str, String> {
    static COMPILER: OnceLock<Result<String, String>> = OnceLock::new();
    let found = COMPILER.get_or_init(|| {
        let name = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
        match Command::new(&name).arg("--version").output() {
            Ok(output) if output.status.success() => Ok(name),
            _ => Err(format!("no C++ compiler {name}; install g++ (on Debian, build-essential) or set CXX")),
        }
    });
    found.as_deref().map_err(Clone::clone)
}

fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-host");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The shared library of a kernel, compiled once for what its sources say now.
fn compile(kernel: &Kernel, chip: &Chip, extra: &[Source]) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = extra.iter().find(|source| source.name == kernel.file);
    let file = root.join(if own.is_some() { "tests/cuda" } else { "cuda" }).join(kernel.file);
    let mut arguments: Vec<String> =
        ["-x", "c++", "-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-shared", "-fPIC"]
            .map(str::to_owned)
            .into();
    // `nearbyint`, `fmin` and friends inline; NaN and signed zeros keep their meaning.
    arguments.extend(
        ["-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing", "-fno-gnu-unique"].map(str::to_owned),
    );
    arguments.extend(
        ["-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-maybe-uninitialized"]
            .map(str::to_owned),
    );
    arguments.push("-DDUQUANT_HOST=1".into());
    arguments.push(format!("-DARCH={}", chip.arch.number()));
    arguments.extend(kernel.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    let mut hash = DefaultHasher::new();
    (kernel.file, &arguments, HOST_SOURCES).hash(&mut hash);
    SOURCES.iter().chain(own).for_each(|source| source.text.hash(&mut hash));
    let library = folder().join(format!("{}-{:016x}.so", kernel.file.replace('.', "_"), hash.finish()));
    // Tests of one process ask for the same library at the same time: the first one makes it.
    static BEING_MADE: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    let turn = Arc::clone(BEING_MADE.lock().unwrap().entry(library.clone()).or_default());
    let _turn = turn.lock().unwrap();
    if library.exists() {
        return Ok(library);
    }
    // Tests of one process compile at the same time.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let scratch = library.with_extension(format!("{}-{count}.tmp", std::process::id()));
    let output = Command::new(compiler()?)
        .args(&arguments)
        .arg(format!("-I{}", root.join("cuda").display()))
        .arg(format!("-I{}", root.join("tests/cuda/host").display()))
        .arg(file)
        .arg("-o")
        .arg(&scratch)
        .output()
        .map_err(|fault| fault.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    std::fs::rename(&scratch, &library).map_err(|fault| fault.to_string())?;
    Ok(library)
}

impl Device for HostDevice {
    fn chip(&self) -> Chip {
        self.chip
    }

    fn name(&self) -> String {
        format!("{} on the host", self.chip.arch.name())
    }

    fn load(&self, kernel: &Kernel) -> Result<Arc<Function>, Error> {
        let mut functions = self.functions.lock().unwrap();
        if let Some(function) = functions.get(kernel) {
            return Ok(Arc::clone(function));
        }
        let library = compile(kernel, &self.chip, self.sources).map_err(|log| Error::Compile {
            kernel: kernel.to_string(),
            arch: self.chip.arch.name().into(),
            version: "the host's".into(),
            log,
        })?;
        // SAFETY: the library was made from this repository's sources; loading it runs no code of its own.
        let library = unsafe { libloading::Library::new(&library) }.map_err(|fault| driver_error("load", fault))?;
        // SAFETY: KERNEL declares the function with this signature.
        let entry: Entry =
            *unsafe { library.get::<Entry>(kernel.entry) }.map_err(|fault| driver_error("load", fault))?;
        let function = Arc::new(Function { kernel: kernel.clone(), handle: entry as usize, keep: Box::new(library) });
        functions.insert(kernel.clone(), Arc::clone(&function));
        Ok(function)
    }

    unsafe fn launch(&self, _stream: Stream, launch: &Launch) -> Result<(), Error> {
        if launch.is_empty() {
            return Ok(());
        }
        assert!(
            launch.function.kernel.archs.contains(&self.chip.arch),
            "{} is not for this chip",
            launch.function.kernel
        );
        assert!(
            launch.shared <= self.chip.arch.shared_per_block(),
            "{} asks for {} bytes",
            launch.function.kernel,
            launch.shared
        );
        assert!(
            launch.grid[1] <= 65_535 && launch.grid[2] <= 65_535,
            "the driver takes no such grid: {:?}",
            launch.grid
        );
        let host = HostLaunch {
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            argument_bytes: launch.arguments().len() as u32,
            seed: self.seed.fetch_add(1, Ordering::Relaxed),
        };
        // SAFETY: `load` made the handle from a function of this type, which `keep` keeps loaded.
        let entry: Entry = unsafe { std::mem::transmute(launch.function.handle) };
        // SAFETY: the arguments are those of the kernel, by its plan.
        let message = unsafe { entry(launch.arguments().as_ptr().cast(), &raw const host) };
        if message.is_null() {
            return Ok(());
        }
        // SAFETY: the shim returns a string that lives until this thread's next launch.
        let message = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
        Err(driver_error(&format!("{} with seed {}", launch.function.kernel, host.seed), message))
    }

    unsafe fn matrix_product(&self, _stream: Stream, product: &MatrixProduct) -> Result<(), Error> {
        let MatrixProduct { tokens, n, k, input, output, x, weight, bias, y, accumulate } = *product;
        for (t, j) in (0..tokens).flat_map(|t| (0..n).map(move |j| (t, j))) {
            // SAFETY: the caller's operands have these shapes.
            unsafe {
                let dot = (0..k).map(|i| load(input, x, t * k + i) * load(input, weight, j * k + i)).sum::<f32>();
                let start = if accumulate { load(output, y, t * n + j) } else { 0.0 };
                let bias = bias.map_or(0.0, |bias| load(output, bias, j));
                store(output, y, t * n + j, start + dot + bias);
            }
        }
        Ok(())
    }

    fn allocate(&self, what: &str, bytes: u64) -> Result<Address, Error> {
        let (pages, room) = extent(bytes);
        // SAFETY: an anonymous mapping of its own.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                pages + PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Error::OutOfMemory { what: what.into(), bytes });
        }
        // SAFETY: the last page of the mapping, and then the bytes in front of it.
        unsafe {
            let guard = start.cast::<u8>().add(pages);
            assert_eq!(libc::mprotect(guard.cast(), PAGE, libc::PROT_NONE), 0);
            let address = guard.sub(room);
            // NaN in any floating-point type.
            std::ptr::write_bytes(address, 0xff, room);
            Ok(address as Address)
        }
    }

    fn free(&self, address: Address, bytes: u64) {
        let (pages, room) = extent(bytes);
        // SAFETY: what `allocate` mapped for so many bytes.
        unsafe { libc::munmap((address as usize + room - pages) as *mut c_void, pages + PAGE) };
    }

    fn write(&self, address: Address, bytes: &[u8]) -> Result<(), Error> {
        // SAFETY: the tests' memory is this process's.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read(&self, address: Address, bytes: &mut [u8]) -> Result<(), Error> {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy(&self, _stream: Stream, from: Address, to: Address, bytes: u64) -> Result<(), Error> {
        // SAFETY: as above.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes as usize) };
        Ok(())
    }

    fn fill(&self, _stream: Stream, address: Address, byte: u8, bytes: u64) -> Result<(), Error> {
        // SAFETY: as above.
        unsafe { std::ptr::write_bytes(address as *mut u8, byte, bytes as usize) };
        Ok(())
    }

    fn synchronize(&self, _stream: Stream) -> Result<(), Error> {
        Ok(())
    }
}

const PAGE: usize = 4096;

/// Bytes of whole pages and of whole 16-byte words for `bytes`.
fn extent(bytes: u64) -> (usize, usize) {
    let room = (bytes as usize).next_multiple_of(16);
    (room.next_multiple_of(PAGE), room)
}

/// Number `i` of an operand.
///
/// # Safety
/// The operand must have it.
unsafe fn load(dtype: Dtype, at: Address, i: usize) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        match dtype {
            Dtype::F32 => *(at as *const f32).add(i),
            Dtype::F16 => (*(at as *const f16).add(i)).to_f32(),
            Dtype::Bf16 => (*(at as *const bf16).add(i)).to_f32(),
        }
    }
}

/// Writes number `i` of an operand.
///
/// # Safety
/// As [`load`].
unsafe fn store(dtype: Dtype, at: Address, i: usize, x: f32) {
    // SAFETY: the caller's.
    unsafe {
        match dtype {
            Dtype::F32 => *(at as *mut f32).add(i) = x,
            Dtype::F16 => *(at as *mut f16).add(i) = f16::from_f32(x),
            Dtype::Bf16 => *(at as *mut bf16).add(i) = bf16::from_f32(x),
        }
    }
}
