//! Opening NVIDIA's libraries at run time, so that this crate builds and starts without them.
//!
//! Types and constants are `cudarc`'s. Functions are looked up here: all of a table at once, so that an old library is an error and
//! not a panic at some later call, and returning plain numbers, since a newer library may return a code that this crate's bindings
//! do not know.

use super::Error;
use libloading::Library;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which library an [`Error::Library`] is about.
pub(super) struct Name {
    /// As `libnvrtc`.
    pub(super) library: &'static str,
    /// What to install or to set.
    pub(super) remedy: &'static str,
}

impl Name {
    pub(super) fn error(&self, tried: &[String]) -> Error {
        let tried = if tried.is_empty() { "nothing".into() } else { tried.join("; ") };
        Error::Library { library: self.library, remedy: self.remedy, tried }
    }

    /// The first of `files` that opens and has every function of a table.
    pub(super) fn open<T>(
        &self,
        files: &[PathBuf],
        table: impl Fn(Arc<Library>) -> Result<T, String>,
    ) -> Result<T, Error> {
        let mut tried = Vec::new();
        for file in files {
            match open_global(file).map_err(|fault| told(&fault)).map(Arc::new).and_then(&table) {
                Ok(found) => return Ok(found),
                Err(fault) => tried.push(format!("{}: {fault}", file.display())),
            }
        }
        Err(self.error(&tried))
    }
}

/// What the loader says, which this crate's error has for its cause.
fn told(fault: &libloading::Error) -> String {
    std::error::Error::source(fault).map_or_else(|| fault.to_string(), ToString::to_string)
}

/// Opens a library so that what is opened later sees its symbols: NVRTC and cuBLASLt open companions of their own by name.
#[cfg(unix)]
fn open_global(file: &Path) -> Result<Library, libloading::Error> {
    use libloading::os::unix;
    // SAFETY: NVIDIA's libraries do nothing unsound when they are loaded, and they are never unloaded while in use.
    unsafe { unix::Library::open(Some(file), unix::RTLD_NOW | unix::RTLD_GLOBAL) }.map(Library::from)
}

#[cfg(not(unix))]
fn open_global(file: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: as above.
    unsafe { Library::new(file) }
}

/// The file names of `stem` (`nvrtc`) of a CUDA version, as in `libnvrtc.so.12`.
pub(super) fn file_names(stem: &str, major: u32) -> Vec<String> {
    if cfg!(windows) {
        // NVRTC's Windows name counts in tens with a minor that stays 0; cuBLASLt's has the major alone.
        vec![format!("{stem}64_{major}0_0.dll"), format!("{stem}64_{major}.dll")]
    } else {
        vec![format!("lib{stem}.so.{major}")]
    }
}

/// Where `stem` may lie for each of the CUDA versions, best version first: first by name, which is the loader's path, then the
/// toolkit's folders and those of Python's packages; `package` is the folder of a CUDA 12 package, as `cuda_nvrtc`.
pub(super) fn candidates(stem: &str, package: &str, majors: &[u32]) -> Vec<PathBuf> {
    let mut folders = toolkit_folders();
    for site in python_folders() {
        folders.extend(majors.iter().map(|major| site.join(format!("nvidia/cu{major}/lib"))));
        folders.push(site.join("nvidia").join(package).join("lib"));
    }
    let mut out = Vec::new();
    for name in majors.iter().flat_map(|&major| file_names(stem, major)) {
        out.push(PathBuf::from(&name));
        out.extend(folders.iter().map(|folder| folder.join(&name)).filter(|file| file.exists()));
    }
    out.push(PathBuf::from(if cfg!(windows) { format!("{stem}.dll") } else { format!("lib{stem}.so") }));
    out
}

/// The candidates within what an environment variable names: a file, or a folder.
pub(super) fn candidates_at(path: &Path, stem: &str, majors: &[u32]) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.into()];
    }
    let names = majors.iter().flat_map(|&major| file_names(stem, major));
    names.chain([format!("lib{stem}.so")]).map(|name| path.join(name)).collect()
}

fn from_env(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn toolkit_folders() -> Vec<PathBuf> {
    let mut roots: Vec<_> = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(from_env).collect();
    roots.push("/usr/local/cuda".into());
    roots.extend(matching("/usr/local".as_ref(), "cuda-"));
    roots.push("/opt/cuda".into());
    let parts = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "bin", "bin/x64"];
    roots.iter().flat_map(|root| parts.map(|part| root.join(part))).collect()
}

fn python_folders() -> Vec<PathBuf> {
    let mut out: Vec<_> = std::env::var_os("PYTHONPATH")
        .iter()
        .flat_map(|paths| std::env::split_paths(paths).collect::<Vec<_>>())
        .collect();
    let mut roots: Vec<_> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(from_env).collect();
    roots.extend(from_env("HOME").map(|home| home.join(".local")));
    roots.extend(["/usr/local".into(), "/usr".into()]);
    for root in roots {
        out.push(root.join("Lib/site-packages"));
        for python in matching(&root.join("lib"), "python3") {
            out.extend(["site-packages", "dist-packages"].map(|part| python.join(part)));
        }
    }
    out
}

/// What in a folder starts with `prefix`, newest-named first.
fn matching(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut out: Vec<_> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    out.sort();
    out.reverse();
    out
}

/// A table of a library's functions, all of which return a number: `functions! { Nvrtc like sys: nvrtcResult { nvrtcVersion(..); } }`.
/// With `like`, the compiler compares each with the bindings of `cudarc`, which were made from NVIDIA's headers.
macro_rules! functions {
    ($table:ident like $sys:ident: $result:ident { $($name:ident($($argument:ident: $type:ty),* $(,)?);)* }) => {
        $crate::kernels::cuda::library::functions! { $table { $($name($($argument: $type),*);)* } }
        const _: () = {
            $(let _: unsafe fn($($type),*) -> $sys::$result = $sys::$name;)*
        };
    };
    ($(#[$attribute:meta])* $table:ident { $($name:ident($($argument:ident: $type:ty),* $(,)?);)* }) => {
        $(#[$attribute])*
        #[allow(non_snake_case, reason = "the functions' own names")]
        pub(super) struct $table {
            $($name: unsafe extern "system" fn($($type),*) -> std::ffi::c_int,)*
            _library: std::sync::Arc<libloading::Library>,
        }

        $(#[$attribute])*
        #[allow(non_snake_case, reason = "the functions' own names")]
        impl $table {
            /// Looks all functions up.
            pub(super) fn of(library: std::sync::Arc<libloading::Library>) -> Result<Self, String> {
                Ok(Self {
                    $($name: {
                        // SAFETY: the type is that of NVIDIA's header; the library stays loaded as long as the table.
                        let found = unsafe { library.get::<unsafe extern "system" fn($($type),*) -> std::ffi::c_int>(stringify!($name)) };
                        *found.map_err(|_| concat!("too old, it has no ", stringify!($name)).to_owned())?
                    },)*
                    _library: library,
                })
            }

            $(
                pub(super) unsafe fn $name(&self, $($argument: $type),*) -> std::ffi::c_int {
                    // SAFETY: what NVIDIA's manual asks for is up to the caller.
                    unsafe { (self.$name)($($argument),*) }
                }
            )*
        }
    };
}
pub(super) use functions;

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]
mod tests {
    use super::*;

    #[test]
    fn what_was_tried_is_told() {
        let name = Name { library: "libnothing", remedy: "install it" };
        let files = ["/nowhere/libnothing.so.1".into(), "/proc/self/status".into()];
        let Err(error) = name.open(&files, |_| Ok::<_, String>(())) else { panic!("it opened") };
        let text = error.to_string();
        assert!(text.starts_with("cannot open libnothing; install it. Tried: /nowhere/libnothing.so.1: "), "{text}");
        assert!(text.contains("No such file"), "what the loader says: {text}");
        assert!(text.contains("; /proc/self/status: "), "{text}");
    }

    #[test]
    fn a_library_without_a_function_is_too_old() {
        functions! {
            #[allow(dead_code, reason = "it is never made")]
            Absent { duquant_has_no_such_function(value: i32); }
        }
        let this = Arc::new(libloading::os::unix::Library::this().into());
        assert_eq!(Absent::of(this).err().unwrap(), "too old, it has no duquant_has_no_such_function");
    }

    #[test]
    fn the_best_version_comes_first() {
        let files = candidates("duquant_test", "cuda_duquant_test", &[12, 13]);
        assert_eq!(files, ["libduquant_test.so.12", "libduquant_test.so.13", "libduquant_test.so"].map(PathBuf::from));
        let folder = tempfile::tempdir().unwrap();
        let files = candidates_at(folder.path(), "nvrtc", &[12]);
        assert_eq!(files, ["libnvrtc.so.12", "libnvrtc.so"].map(|name| folder.path().join(name)));
        assert_eq!(candidates_at("/a/file.so".as_ref(), "nvrtc", &[12]), [PathBuf::from("/a/file.so")]);
    }
}
