use super::{Arch, Compiler, Error, Kernel, SOURCES};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// How an entry starts; the checksum of the code follows, then the code.
const MAGIC: &[u8; 16] = b"duquant cubin 1\n";

/// Machine code on disk, by what it was made from: sources, options, and the versions of NVRTC and this crate.
///
/// Entries appear whole or not at all. One that cannot be read, or whose checksum is wrong, is compiled anew; a folder that cannot
/// be written costs time and is no error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CubinCache {
    folder: Option<PathBuf>,
}

/// Machine code, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cubin {
    /// An ELF image.
    pub image: Vec<u8>,
    /// Whether it was there already.
    pub cached: bool,
}

impl CubinCache {
    /// The user's: `DUQUANT_CUBIN_CACHE`, or else `duquant/cubins` in `$XDG_CACHE_HOME` or `~/.cache`. An empty
    /// `DUQUANT_CUBIN_CACHE` turns caching off.
    #[must_use]
    pub fn of_user() -> Self {
        Self::choose(|name| std::env::var_os(name).map(PathBuf::from))
    }

    fn choose(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let named = |name: &str| variable(name).filter(|path| path.is_absolute());
        let folder = match variable("DUQUANT_CUBIN_CACHE") {
            Some(folder) => Some(folder).filter(|folder| !folder.as_os_str().is_empty()),
            None => named("XDG_CACHE_HOME")
                .or_else(|| named("HOME").map(|home| home.join(".cache")))
                .or_else(|| named("LOCALAPPDATA"))
                .map(|cache| cache.join("duquant").join("cubins")),
        };
        Self { folder }
    }

    /// The one in `folder`, which is created when something is stored.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self { folder: Some(folder.into()) }
    }

    /// None: everything is compiled each time.
    #[must_use]
    pub fn disabled() -> Self {
        Self { folder: None }
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// What [`Compiler::compile`] gives, or gave before. Kernels of one file with the same macros share an entry.
    ///
    /// # Errors
    /// [`Error::Compile`].
    pub fn compile(&self, compiler: &Compiler, kernel: &Kernel, option: &str, arch: Arch) -> Result<Cubin, Error> {
        let entry = self.folder.as_ref().map(|folder| {
            let options = Compiler::options(kernel, option, arch);
            folder.join(format!("{}.cubin", key(kernel.file, &options, &compiler.version())))
        });
        if let Some(image) = entry.as_deref().and_then(read) {
            return Ok(Cubin { image, cached: true });
        }
        let image = compiler.compile(kernel, option, arch)?;
        if let Some(entry) = entry {
            // A cache that cannot be written is as good as none.
            let _ = write(&entry, &image);
        }
        Ok(Cubin { image, cached: false })
    }
}

fn key(file: &str, options: &[String], version: &str) -> String {
    let mut hash = Sha256::new();
    let mut text = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    [env!("CARGO_PKG_VERSION"), version, file].into_iter().for_each(&mut text);
    options.iter().for_each(|option| text(option));
    SOURCES.iter().filter(|source| source.name == file || source.name.ends_with(".cuh")).for_each(|source| {
        text(source.name);
        text(source.text);
    });
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(entry: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(entry).ok()?;
    let (checksum, image) = bytes.strip_prefix(MAGIC)?.split_at_checked(32)?;
    (Sha256::digest(image).as_slice() == checksum).then(|| image.to_vec())
}

fn write(entry: &Path, image: &[u8]) -> std::io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if let Some(folder) = entry.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let scratch = entry.with_extension(format!("{}.{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let bytes = [MAGIC, Sha256::digest(image).as_slice(), image].concat();
    let written = std::fs::write(&scratch, bytes).and_then(|()| std::fs::rename(&scratch, entry));
    if written.is_err() {
        let _ = std::fs::remove_file(&scratch);
    }
    written
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails this way")]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_the_users() {
        let of = |set: &[(&str, &str)]| {
            let set: Vec<_> = set.iter().map(|(name, value)| ((*name).to_owned(), PathBuf::from(value))).collect();
            CubinCache::choose(|name| set.iter().find(|(set, _)| set == name).map(|(_, value)| value.clone())).folder
        };
        assert_eq!(of(&[("HOME", "/h")]), Some("/h/.cache/duquant/cubins".into()));
        assert_eq!(of(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/duquant/cubins".into()));
        // The standard says that relative paths there count for nothing.
        assert_eq!(of(&[("HOME", "/h"), ("XDG_CACHE_HOME", "x")]), Some("/h/.cache/duquant/cubins".into()));
        assert_eq!(of(&[("HOME", "/h"), ("DUQUANT_CUBIN_CACHE", "c")]), Some("c".into()));
        assert_eq!(of(&[("HOME", "/h"), ("DUQUANT_CUBIN_CACHE", "")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_key_is_of_everything() {
        let options = |text: &str| vec![text.to_owned()];
        let keys = [
            key("rms_norm.cu", &options("-DA=1"), "13.0"),
            key("rms_norm.cu", &options("-DA=2"), "13.0"),
            key("rms_norm.cu", &options("-DA=1"), "12.0"),
            key("other.cu", &options("-DA=1"), "13.0"),
            key("rms_norm.cu", &[], "13.0"),
        ];
        for (i, one) in keys.iter().enumerate() {
            assert_eq!(one.len(), 64);
            assert!(keys[..i].iter().all(|other| one != other));
        }
        assert_eq!(keys[0], key("rms_norm.cu", &options("-DA=1"), "13.0"));
    }

    #[test]
    fn only_whole_entries_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let entry = folder.path().join("deep/er/entry.cubin");
        assert_eq!(read(&entry), None);
        write(&entry, b"some code").unwrap();
        assert_eq!(read(&entry).unwrap(), b"some code");
        assert_eq!(std::fs::read_dir(entry.parent().unwrap()).unwrap().count(), 1, "no scratch file is left");
        let whole = std::fs::read(&entry).unwrap();
        for spoilt in [&whole[..0], &whole[..20], &whole[..whole.len() - 1], &[&whole[..], b"x"].concat()] {
            std::fs::write(&entry, spoilt).unwrap();
            assert_eq!(read(&entry), None);
        }
    }
}
