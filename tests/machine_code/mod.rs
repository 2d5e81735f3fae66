//! What NVRTC makes of a kernel, and the tools that read it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails this way")]

pub(crate) mod expect;
pub(crate) mod sass;

use duquant::kernels::cuda::{Arch, Compiler, CubinCache, Kernel};
use std::collections::BTreeMap;
use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

const INSTALL: &str = "python3 -m pip install --no-deps --upgrade --target target/cuda-tools -r cuda/requirements.txt";

/// NVRTC, nvdisasm and cuobjdump of one version. No GPU and no driver is needed.
pub(crate) struct Tools {
    pub(crate) compiler: &'static Compiler,
    nvdisasm: PathBuf,
    cuobjdump: PathBuf,
    cache: PathBuf,
}

/// What cuobjdump says of an entry.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) registers: u32,
    /// Bytes of stack a thread.
    pub(crate) stack: u32,
    /// Bytes of static shared memory, the 1024 that the system takes on Hopper among them.
    pub(crate) shared: u32,
    /// Bytes of local memory a thread.
    pub(crate) local: u32,
}

/// The machine code of one file, set of defines and architecture: all entries of the file.
pub(crate) struct Code {
    pub(crate) usage: BTreeMap<String, Usage>,
    pub(crate) text: String,
    /// Seconds that NVRTC took; none when the code was on disk.
    pub(crate) compiled: Option<f64>,
}

impl Tools {
    /// Those in `DUQUANT_CUDA_TOOLS`, a folder with `bin` and `lib`; or else in `target/cuda-tools`, where [`INSTALL`] puts them; or
    /// else in PATH, with the NVRTC that this machine has.
    pub(crate) fn find() -> Result<Self, String> {
        let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cuda-tools/nvidia/cu13");
        let folder = match std::env::var_os("DUQUANT_CUDA_TOOLS") {
            Some(named) => Some(PathBuf::from(named)),
            None => Some(local).filter(|local| local.is_dir()),
        };
        let tool = |name: &str| folder.as_ref().map_or_else(|| name.into(), |folder| folder.join("bin").join(name));
        let (nvdisasm, cuobjdump) = (tool("nvdisasm"), tool("cuobjdump"));
        for tool in [&nvdisasm, &cuobjdump] {
            run(Command::new(tool).arg("--version"))
                .map_err(|fault| format!("{fault}; install it with `{INSTALL}` or set DUQUANT_CUDA_TOOLS"))?;
        }
        let compiler = match &folder {
            Some(folder) => Compiler::at(&folder.join("lib")).map(|found| &*Box::leak(Box::new(found))),
            None => Compiler::open(),
        };
        let compiler = compiler.map_err(|fault| format!("{fault}; or install it with `{INSTALL}`"))?;
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cubins");
        std::fs::create_dir_all(&cache).map_err(|fault| fault.to_string())?;
        Ok(Self { compiler, nvdisasm, cuobjdump, cache })
    }

    pub(crate) fn version(&self) -> String {
        self.compiler.version()
    }

    /// Compiles a kernel's file, or takes it from disk, and disassembles it.
    pub(crate) fn code(&self, kernel: &Kernel, arch: Arch) -> Result<Code, String> {
        let start = std::time::Instant::now();
        let cubin = CubinCache::at(&self.cache)
            .compile(self.compiler, kernel, arch.name(), arch)
            .map_err(|fault| fault.to_string())?;
        let compiled = (!cubin.cached).then(|| start.elapsed().as_secs_f64());
        let (usage, text) = self.read(&cubin.image).map_err(|fault| fault.to_string())?;
        Ok(Code { usage: parse_usage(&usage), text, compiled })
    }
}

impl Tools {
    /// What cuobjdump and nvdisasm print of an image, or printed before: nvdisasm takes a third of a second to start.
    fn read(&self, image: &[u8]) -> Result<(String, String), Box<dyn Error>> {
        let mut hash = DefaultHasher::new();
        (image, &self.nvdisasm).hash(&mut hash);
        let known = self.cache.join(format!("{:016x}.sass", hash.finish()));
        if let Some((usage, text)) =
            std::fs::read_to_string(&known).ok().as_deref().and_then(|all| all.split_once('\u{c}'))
        {
            return Ok((usage.into(), text.into()));
        }
        let file = tempfile::Builder::new().suffix(".cubin").tempfile_in(&self.cache)?;
        std::fs::write(file.path(), image)?;
        let usage = run(Command::new(&self.cuobjdump).arg("--dump-resource-usage").arg(file.path()))?;
        // Without the analysis of data flow, for which no kernel here has the indirect branches: a fifth of the time.
        let text = run(Command::new(&self.nvdisasm).args(["-c", "-ndf"]).arg(file.path()))?;
        let whole = tempfile::NamedTempFile::new_in(&self.cache)?;
        std::fs::write(whole.path(), format!("{usage}\u{c}{text}"))?;
        whole.persist(&known)?;
        Ok((usage, text))
    }
}

fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|fault| format!("{name} does not start: {fault}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(format!("{name}: {}", text(&output.stderr))) }
}

/// Lines ` Function name:` and `  REG:32 STACK:0 SHARED:0 LOCAL:0 ..` in turn.
fn parse_usage(text: &str) -> BTreeMap<String, Usage> {
    let mut out = BTreeMap::new();
    let mut entry = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("Function ") {
            entry = Some(name.trim_end_matches(':').to_owned());
        } else if let Some(entry) = line.starts_with("REG:").then(|| entry.take()).flatten() {
            let field = |name: &str| {
                let found = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
                found.and_then(|number| number.parse().ok()).unwrap_or(u32::MAX)
            };
            let (registers, stack) = (field("REG"), field("STACK"));
            out.insert(entry, Usage { registers, stack, shared: field("SHARED"), local: field("LOCAL") });
        }
    }
    out
}
