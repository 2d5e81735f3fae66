//! Folders that appear whole or not at all.

use super::Error;
use super::quantization::FileRecord;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A folder under construction: `.NAME.partial-PID-N` beside its final name, renamed onto it by
/// [`PartialFolder::commit`]. Dropped before that, it is removed; a killed process leaves it behind, unlocked, and the
/// next run for the same name removes it.
#[derive(Debug)]
pub(crate) struct PartialFolder {
    path: PathBuf,
    target: PathBuf,
    parent: PathBuf,
    replace: bool,
    /// Holds the lock that tells a running writer from a killed one.
    _lock: Option<File>,
}

impl PartialFolder {
    /// Starts a folder that will be `target`. What stands there already must be an empty folder, or one for which
    /// `may_replace` holds.
    pub(crate) fn create(
        target: &Path,
        may_replace: impl FnOnce(&Path) -> Result<bool, String>,
    ) -> Result<Self, Error> {
        let replace = check_target(target, may_replace)?;
        let bad_name = || Error::Occupied { path: target.into(), what: "expected the name of a folder".into() };
        let name = target.file_name().ok_or_else(bad_name)?.to_string_lossy().into_owned();
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        fs::create_dir_all(&parent).map_err(Error::io(&parent, "create"))?;
        let prefix = format!(".{name}.partial-");
        remove_abandoned(&parent, &prefix);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = parent.join(format!("{prefix}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).map_err(Error::io(&path, "create"))?;
        let lock = lock_folder(&path);
        Ok(Self { path, target: target.into(), parent, replace, _lock: lock })
    }

    /// Writes one file through `content`, flushed to the disk before this returns.
    pub(crate) fn write(
        &self,
        name: &str,
        content: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> Result<FileRecord, Error> {
        let path = self.path.join(name);
        let file = File::create_new(&path).map_err(Error::io(&path, "create"))?;
        let mut writer =
            HashingWriter { inner: BufWriter::with_capacity(1 << 20, file), hash: Sha256::new(), bytes: 0 };
        content(&mut writer).map_err(Error::io(&path, "write"))?;
        let file = writer.inner.into_inner().map_err(|e| Error::io(&path, "write")(e.into_error()))?;
        file.sync_all().map_err(Error::io(&path, "flush"))?;
        Ok(FileRecord { bytes: writer.bytes, sha256: hex(&writer.hash.finalize()) })
    }

    /// Moves the folder onto its final name. A folder that is replaced stays readable under that name until this instant.
    pub(crate) fn commit(self) -> Result<(), Error> {
        sync_folder(&self.path)?;
        // The target may have changed while we were writing, for hours perhaps.
        if self.replace && self.target.exists() {
            exchange(&self.path, &self.target)?;
        } else {
            fs::rename(&self.path, &self.target).map_err(Error::io(&self.target, "rename a finished folder to"))?;
        }
        // Dropping removes what now has the partial name: the replaced folder, or nothing.
        sync_folder(&self.parent)
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Whether there is something at `target` to replace; an error when it may not be.
fn check_target(target: &Path, may_replace: impl FnOnce(&Path) -> Result<bool, String>) -> Result<bool, Error> {
    let metadata = match fs::metadata(target) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(Error::io(target, "open"))?,
    };
    let occupied = |what: String| Error::Occupied { path: target.into(), what };
    if !metadata.is_dir() {
        return Err(occupied("is a file; give the name of a folder".into()));
    }
    let mut entries = fs::read_dir(target).map_err(Error::io(target, "list"))?;
    if entries.next().is_none() {
        return Ok(false);
    }
    match may_replace(target) {
        Ok(true) => Ok(true),
        Ok(false) => Err(occupied("is not empty; give another folder".into())),
        Err(what) => Err(occupied(what)),
    }
}

/// Removes partial folders whose writer is gone. Failing to is no reason not to write another.
fn remove_abandoned(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) && lock_folder(&entry.path()).is_some() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Locks a folder against removal; `None` when another process holds it, or where folders cannot be locked.
fn lock_folder(path: &Path) -> Option<File> {
    let folder = File::open(path).ok()?;
    folder.try_lock().ok()?;
    Some(folder)
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    if cfg!(unix) {
        let folder = File::open(path).map_err(Error::io(path, "open"))?;
        folder.sync_all().map_err(Error::io(path, "flush"))?;
    }
    Ok(())
}

/// Swaps two folders, in one step where the system can.
fn exchange(new: &Path, old: &Path) -> Result<(), Error> {
    #[cfg(target_os = "linux")]
    {
        use std::ffi::CString;
        use std::os::unix::ffi::OsStrExt;
        if let (Ok(from), Ok(to)) = (CString::new(new.as_os_str().as_bytes()), CString::new(old.as_os_str().as_bytes()))
        {
            let (here, swap) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
            // SAFETY: both paths are strings that end in NUL and outlive the call; the call keeps neither.
            if unsafe { libc::renameat2(here, from.as_ptr(), here, to.as_ptr(), swap) } == 0 {
                return Ok(());
            }
        }
    }
    let mut aside = new.as_os_str().to_owned();
    aside.push("-old");
    let aside = PathBuf::from(aside);
    fs::rename(old, &aside).map_err(Error::io(old, "move away"))?;
    fs::rename(new, old).map_err(Error::io(old, "rename a finished folder to"))?;
    fs::remove_dir_all(&aside).map_err(Error::io(&aside, "remove"))
}

/// Hashes and counts what passes through.
struct HashingWriter {
    inner: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl Write for HashingWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = std::io::Read::read(&mut file, &mut buffer).map_err(Error::io(path, "read"))?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error as IoError, ErrorKind};

    #[test]
    fn a_full_disk_is_reported_by_file_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = PartialFolder::create(&dir.path().join("model"), |_| Ok(false)).unwrap();
        folder.write("first", |out| out.write_all(&[1; 3000])).unwrap();
        let full = folder.write("second", |out| {
            out.write_all(&[2; 3000])?;
            Err(IoError::from(ErrorKind::StorageFull))
        });
        let error = full.unwrap_err();
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::StorageFull), "{error}");
        assert!(error.to_string().contains("second: cannot write"), "{error}");
        drop(folder);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn records_hold_size_and_hash() {
        let dir = tempfile::tempdir().unwrap();
        let folder = PartialFolder::create(&dir.path().join("model"), |_| Ok(false)).unwrap();
        let record = folder.write("file", |out| out.write_all(b"abc")).unwrap();
        folder.commit().unwrap();
        assert_eq!(record.bytes, 3);
        // The test vector of FIPS 180-4.
        assert_eq!(record.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(sha256_of(&dir.path().join("model/file")).unwrap(), record.sha256);
    }
}
