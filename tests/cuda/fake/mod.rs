//! NVIDIA's libraries without a device: C files that a test compiles and that a process of its own loads in their place.
#![allow(dead_code, reason = "each test file asks for what it needs")]

use super::cuda::host;
use duquant::kernels::cuda::{Kernel, kernels};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const SOURCES: [(&str, &str, &str); 3] = [
    ("libcuda.so.1", "libcuda.c", include_str!("libcuda.c")),
    ("libnvrtc.so.12", "libnvrtc.c", include_str!("libnvrtc.c")),
    ("libcublasLt.so.12", "libcublaslt.c", include_str!("libcublaslt.c")),
];

/// `Launch` of `libcuda.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Launched {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
    pub(crate) count: u32,
    pub(crate) stream: usize,
    pub(crate) arguments: [u8; 64],
}

/// A kernel to load: the first RMSNorm.
pub(crate) fn rms_norm() -> Kernel {
    kernels().into_iter().find(|kernel| kernel.entry == "rms_norm").unwrap()
}

/// What is alive, in the order of `libcuda.c`.
pub(crate) const KINDS: [&str; 7] =
    ["contexts", "modules", "streams", "events", "graphs", "executable graphs", "allocations"];

/// The libraries as the process has them, with what they tell tests.
pub(crate) struct Fake {
    cuda: Library,
    nvrtc: Library,
    blas: Library,
}

impl Fake {
    fn load() -> Self {
        // SAFETY: the libraries were made from the sources beside this file.
        let [cuda, nvrtc, blas] = SOURCES.map(|(name, ..)| unsafe { Library::new(name) }.unwrap());
        Self { cuda, nvrtc, blas }
    }

    fn number(library: &Library, name: &str) -> i32 {
        // SAFETY: of this type in the sources beside this file.
        unsafe { library.get::<unsafe extern "C" fn() -> c_int>(name).unwrap()() }
    }

    fn text(&self, name: &str) -> String {
        // SAFETY: of this type in the sources beside this file; the string is static.
        unsafe { CStr::from_ptr(self.nvrtc.get::<unsafe extern "C" fn() -> *const c_char>(name).unwrap()()) }
            .to_string_lossy()
            .into_owned()
    }

    /// How many of each of [`KINDS`] there are.
    pub(crate) fn live(&self) -> [i32; 7] {
        // SAFETY: of this type in the sources beside this file.
        let live = unsafe { self.cuda.get::<unsafe extern "C" fn(c_int) -> c_int>("fake_live") }.unwrap();
        // SAFETY: as above.
        std::array::from_fn(|kind| unsafe { live(kind as c_int) })
    }

    /// Asserts that nothing is left, that nothing was misused, and that the stack of contexts is as it was.
    pub(crate) fn assert_clean(&self, when: &str) {
        let left: Vec<_> = KINDS.into_iter().zip(self.live()).filter(|(_, count)| *count != 0).collect();
        assert_eq!((left, self.misuse(), self.depth()), (vec![], 0, 0), "{when}");
    }

    pub(crate) fn misuse(&self) -> i32 {
        Self::number(&self.cuda, "fake_misuse")
    }

    pub(crate) fn depth(&self) -> i32 {
        Self::number(&self.cuda, "fake_depth")
    }

    /// Calls since [`Fake::count`].
    pub(crate) fn calls(&self) -> i32 {
        Self::number(&self.cuda, "fake_calls")
    }

    pub(crate) fn compiled(&self) -> i32 {
        Self::number(&self.nvrtc, "fake_compiled")
    }

    /// `-arch` and `ARCH` of the last compilation.
    pub(crate) fn compiled_for(&self) -> (String, String) {
        (self.text("fake_machine"), self.text("fake_arch"))
    }

    /// Objects of cuBLASLt's, and how often it chose an algorithm.
    pub(crate) fn blas(&self) -> (i32, i32) {
        (Self::number(&self.blas, "fake_objects"), Self::number(&self.blas, "fake_choices"))
    }

    pub(crate) fn last(&self) -> Launched {
        // SAFETY: of this type in the sources beside this file.
        unsafe { self.cuda.get::<unsafe extern "C" fn() -> Launched>("fake_last").unwrap()() }
    }

    /// What device there is from now on: its compute capability times 10, whether it has pools of memory, how many there are.
    pub(crate) fn device(&self, capability: c_int, pools: bool, count: c_int) {
        // SAFETY: of this type in the sources beside this file.
        unsafe {
            let set = self.cuda.get::<unsafe extern "C" fn(c_int, c_int, c_int)>("fake_device").unwrap();
            set(capability, pools.into(), count);
        }
    }

    /// The nth call of `function` from now on fails with `code`.
    pub(crate) fn fail(&self, function: &str, nth: c_int, code: c_int) {
        let function = CString::new(function).unwrap();
        // SAFETY: of this type in the sources beside this file.
        unsafe {
            let set = self.cuda.get::<unsafe extern "C" fn(*const c_char, c_int, c_int)>("fake_fail").unwrap();
            set(function.as_ptr(), nth, code);
        }
    }

    /// Counts the calls of `function`.
    pub(crate) fn count(&self, function: &str) {
        let function = CString::new(function).unwrap();
        // SAFETY: of this type in the sources beside this file.
        unsafe { self.cuda.get::<unsafe extern "C" fn(*const c_char)>("fake_count").unwrap()(function.as_ptr()) }
    }

    /// A context as a host would make it, current in this thread.
    pub(crate) fn create_context(&self) -> *mut c_void {
        type Create = unsafe extern "C" fn(*mut *mut c_void, u32, c_int) -> c_int;
        let mut context = std::ptr::null_mut();
        // SAFETY: of this type in the sources beside this file.
        let code = unsafe { self.cuda.get::<Create>("cuCtxCreate_v2").unwrap()(&raw mut context, 0, 0) };
        assert_eq!(code, 0);
        context
    }

    /// Takes the current context off the stack.
    pub(crate) fn pop_context(&self) -> *mut c_void {
        let mut context = std::ptr::null_mut();
        // SAFETY: of this type in the sources beside this file.
        unsafe {
            let pop = self.cuda.get::<unsafe extern "C" fn(*mut *mut c_void) -> c_int>("cuCtxPopCurrent_v2");
            assert_eq!(pop.unwrap()(&raw mut context), 0);
        }
        context
    }

    /// Ends a context of [`Fake::create_context`].
    pub(crate) fn destroy_context(&self, context: *mut c_void) {
        // SAFETY: of this type in the sources beside this file.
        unsafe {
            let destroy = self.cuda.get::<unsafe extern "C" fn(*mut c_void) -> c_int>("cuCtxDestroy_v2");
            assert_eq!(destroy.unwrap()(context), 0);
        }
    }
}

/// Compiles the libraries into a folder, once for what the sources say.
fn build(define: Option<&str>) -> Result<PathBuf, String> {
    let compiler = host::compiler()?;
    let mut hash = DefaultHasher::new();
    (SOURCES, define).hash(&mut hash);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-fake-{:016x}", hash.finish()));
    if folder.exists() {
        return Ok(folder);
    }
    let scratch = folder.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(&scratch).unwrap();
    for (library, source, _) in SOURCES {
        let output = Command::new(compiler)
            .args(["-x", "c", "-std=gnu11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread"])
            .args(define.map(|define| format!("-D{define}")))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/fake").join(source))
            .arg("-o")
            .arg(scratch.join(library))
            .output()
            .unwrap();
        assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // Another process may have been faster.
    if std::fs::rename(&scratch, &folder).is_err() {
        std::fs::remove_dir_all(&scratch).unwrap();
    }
    Ok(folder)
}

/// Runs `scenario` in a process of its own, which is this test program with the fake libraries: `test` must be the name of the test
/// that calls this. `define` is for the compilation of the libraries.
pub(crate) fn run(test: &str, define: Option<&str>, scenario: impl FnOnce(&Fake)) {
    const CHILD: &str = "DUQUANT_TEST_FAKE";
    if std::env::var_os(CHILD).is_some() {
        return scenario(&Fake::load());
    }
    static FOLDER: [OnceLock<Result<PathBuf, String>>; 2] = [OnceLock::new(), OnceLock::new()];
    let folder = match FOLDER[usize::from(define.is_some())].get_or_init(|| build(define)) {
        Ok(folder) => folder,
        Err(fault) => {
            assert!(std::env::var_os("CI").is_none(), "{test}: {fault}");
            return println!("skipped {test}: {fault}");
        }
    };
    let cache = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", folder)
        .env("DUQUANT_NVRTC", folder)
        .env("DUQUANT_CUBIN_CACHE", cache.path())
        .output()
        .unwrap();
    let told = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}
