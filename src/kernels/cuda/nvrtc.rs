//! NVIDIA's run-time compiler: sources in, machine code for one architecture out.

use super::library::{Name, candidates, candidates_at, functions};
use super::{Arch, Error, Kernel, SOURCES, driver};
use cudarc::nvrtc::sys;
use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::sync::OnceLock;

functions! {
    Nvrtc like sys: nvrtcResult {
        nvrtcVersion(major: *mut c_int, minor: *mut c_int);
        nvrtcCreateProgram(
            program: *mut sys::nvrtcProgram,
            source: *const c_char,
            name: *const c_char,
            header_count: c_int,
            headers: *const *const c_char,
            header_names: *const *const c_char,
        );
        nvrtcDestroyProgram(program: *mut sys::nvrtcProgram);
        nvrtcCompileProgram(program: sys::nvrtcProgram, count: c_int, options: *const *const c_char);
        nvrtcGetProgramLogSize(program: sys::nvrtcProgram, bytes: *mut usize);
        nvrtcGetProgramLog(program: sys::nvrtcProgram, log: *mut c_char);
        nvrtcGetCUBINSize(program: sys::nvrtcProgram, bytes: *mut usize);
        nvrtcGetCUBIN(program: sys::nvrtcProgram, cubin: *mut c_char);
    }
}

const NAME: Name = Name {
    library: "libnvrtc",
    remedy: "install NVIDIA's run-time compiler (pip install nvidia-cuda-nvrtc, nvidia-cuda-nvrtc-cu12 for a CUDA 12 driver, or \
             the CUDA toolkit), or set DUQUANT_NVRTC to the library or its folder",
};

/// NVRTC, opened.
pub struct Compiler {
    nvrtc: Nvrtc,
    version: (u32, u32),
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Compiler(NVRTC {})", self.version())
    }
}

impl Compiler {
    /// The compiler of this process, opened once: `DUQUANT_NVRTC`, a file or a folder, if that is set; otherwise what the loader
    /// finds, the toolkit's folders and those of Python's packages, a version that the installed driver can load first.
    ///
    /// # Errors
    /// [`Error::Library`] with every place that was tried.
    pub fn open() -> Result<&'static Self, Error> {
        static COMPILER: OnceLock<Result<Compiler, Error>> = OnceLock::new();
        let compiler =
            COMPILER.get_or_init(|| match std::env::var_os("DUQUANT_NVRTC").filter(|path| !path.is_empty()) {
                Some(path) => Self::at(path.as_ref()),
                None => Self::of(NAME.open(&candidates("nvrtc", "cuda_nvrtc", &driver::majors()), Nvrtc::of)?),
            });
        compiler.as_ref().map_err(Clone::clone)
    }

    /// The compiler that is this file, or lies in this folder.
    ///
    /// # Errors
    /// [`Error::Library`].
    pub fn at(path: &Path) -> Result<Self, Error> {
        Self::of(NAME.open(&candidates_at(path, "nvrtc", &driver::majors()), Nvrtc::of)?)
    }

    fn of(nvrtc: Nvrtc) -> Result<Self, Error> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two numbers to write to.
        let code = unsafe { nvrtc.nvrtcVersion(&raw mut major, &raw mut minor) };
        if code != 0 {
            return Err(NAME.error(&[format!("nvrtcVersion failed with {code}")]));
        }
        Ok(Self { nvrtc, version: (major.unsigned_abs(), minor.unsigned_abs()) })
    }

    /// Its version, as `13.0`.
    #[must_use]
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// The first number of its version. A driver loads code of compilers up to its own major version.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.version.0
    }

    /// What a kernel is compiled with: for the machine `arch_option` (`sm_80`), with the sources' `ARCH` that of `arch`.
    #[must_use]
    pub fn options(kernel: &Kernel, arch_option: &str, arch: Arch) -> Vec<String> {
        let mut out = vec![
            format!("-arch={arch_option}"),
            "--std=c++17".into(),
            // The arithmetic is the oracle's, operation for operation; where fusing is meant the sources say so.
            "--fmad=false".into(),
            "-default-device".into(),
            "-lineinfo".into(),
            format!("-DARCH={}", arch.number()),
        ];
        out.extend(kernel.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        out
    }

    /// The machine code of a kernel's file with its macros, an ELF image (cubin). `arch_option` and `arch` are as for
    /// [`Compiler::options`]; they differ where kernels of one family run on a chip of another, for tests.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's log.
    pub fn compile(&self, kernel: &Kernel, arch_option: &str, arch: Arch) -> Result<Vec<u8>, Error> {
        self.try_compile(kernel, arch_option, arch).map_err(|log| Error::Compile {
            kernel: kernel.to_string(),
            arch: arch_option.to_owned(),
            version: self.version(),
            log,
        })
    }

    fn try_compile(&self, kernel: &Kernel, arch_option: &str, arch: Arch) -> Result<Vec<u8>, String> {
        let Some(source) = SOURCES.iter().find(|source| source.name == kernel.file) else {
            return Err(format!("{} is not among this crate's sources", kernel.file));
        };
        let headers = SOURCES.iter().filter(|source| source.name.ends_with(".cuh"));
        let (names, texts): (Vec<_>, Vec<_>) = headers.map(|header| (header.name, header.text)).unzip();
        let (names, texts) = (Strings::new(names)?, Strings::new(texts)?);
        let options = Strings::new(Self::options(kernel, arch_option, arch))?;
        let both = Strings::new([source.text, source.name])?;
        let mut program = Program { nvrtc: &self.nvrtc, handle: std::ptr::null_mut() };
        // SAFETY: all strings end in 0 and live until the program is destroyed, at the end of this function at the latest.
        let code = unsafe {
            self.nvrtc.nvrtcCreateProgram(
                &raw mut program.handle,
                both.pointers[0],
                both.pointers[1],
                names.pointers.len() as c_int,
                texts.pointers.as_ptr(),
                names.pointers.as_ptr(),
            )
        };
        if code != 0 {
            return Err(format!("nvrtcCreateProgram failed with {code}"));
        }
        let count = options.pointers.len() as c_int;
        // SAFETY: the program was created above; `count` options that end in 0.
        let code = unsafe { self.nvrtc.nvrtcCompileProgram(program.handle, count, options.pointers.as_ptr()) };
        if code != 0 {
            return Err(program.log().unwrap_or_else(|| format!("nvrtcCompileProgram failed with {code}")));
        }
        program.cubin()
    }
}

/// C strings with an array of pointers to them.
struct Strings {
    pointers: Vec<*const c_char>,
    _owned: Vec<CString>,
}

impl Strings {
    fn new<T: Into<Vec<u8>>>(strings: impl IntoIterator<Item = T>) -> Result<Self, String> {
        let owned: Result<Vec<_>, _> = strings.into_iter().map(CString::new).collect();
        let owned = owned.map_err(|fault| fault.to_string())?;
        Ok(Self { pointers: owned.iter().map(|string| string.as_ptr()).collect(), _owned: owned })
    }
}

struct Program<'a> {
    nvrtc: &'a Nvrtc,
    handle: sys::nvrtcProgram,
}

impl Program<'_> {
    fn log(&self) -> Option<String> {
        let mut bytes = 0;
        // SAFETY: a number to write to.
        let code = unsafe { self.nvrtc.nvrtcGetProgramLogSize(self.handle, &raw mut bytes) };
        if code != 0 || bytes <= 1 {
            return None;
        }
        let mut log = vec![0_u8; bytes];
        // SAFETY: the log has `bytes` bytes, the last of which is 0.
        let code = unsafe { self.nvrtc.nvrtcGetProgramLog(self.handle, log.as_mut_ptr().cast()) };
        (code == 0).then(|| String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: a number to write to.
        let code = unsafe { self.nvrtc.nvrtcGetCUBINSize(self.handle, &raw mut bytes) };
        if code != 0 || bytes == 0 {
            return Err(format!("nvrtcGetCUBINSize gave {bytes} bytes and {code}"));
        }
        let mut cubin = vec![0_u8; bytes];
        // SAFETY: the cubin has `bytes` bytes.
        let code = unsafe { self.nvrtc.nvrtcGetCUBIN(self.handle, cubin.as_mut_ptr().cast()) };
        if code == 0 { Ok(cubin) } else { Err(format!("nvrtcGetCUBIN failed with {code}")) }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the handle is a program's, and nobody uses it again.
            unsafe { self.nvrtc.nvrtcDestroyProgram(&raw mut self.handle) };
        }
    }
}
