use super::Error;
use memmap2::Mmap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A read-only file in memory, paged in as it is touched.
#[derive(Debug)]
pub(crate) struct MappedFile {
    pub(crate) path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let metadata = file.metadata().map_err(Error::io(path, "read the size"))?;
        if !metadata.is_file() {
            return Err(Error::malformed(path, "expected a regular file"));
        }
        // SAFETY: the mapping is read-only and its bytes are only ever read as plain integers, so that another process
        // writing to the file can change values (which are validated after they were copied out) but no invariant.
        // Shrinking the file meanwhile kills the process (SIGBUS), as with every memory-mapped reader.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Ok(Self { path: path.into(), map })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Gives the pages of `range` back after its content was copied out, so that a reader's resident memory is what it
    /// keeps and not what it has ever seen.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: a read-only file mapping loses nothing: the pages come back from the file when touched again.
            // The call fails only for ranges outside the mapping, and then nothing happens.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// Reads a small file whole, refusing one of more than `limit` bytes.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > limit {
        return Err(Error::malformed(path, format!("expected at most {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident KiB of the mapping that begins at `start`.
    #[cfg(target_os = "linux")]
    fn resident(start: *const u8) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&format!("{:x}-", start as usize)));
        let rss = lines.find(|line| line.starts_with("Rss:")).unwrap();
        rss.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn released_pages_leave_memory_and_come_back_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..8_u32 << 20).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = MappedFile::open(&path).unwrap();
        let start = file.bytes().as_ptr();
        assert_eq!(file.bytes(), content);
        assert_eq!(resident(start), 8 << 10);
        file.release(5..content.len() - 3);
        assert!(resident(start) <= 64, "{} KiB", resident(start));
        assert_eq!(file.bytes(), content);
        file.release(content.len()..usize::MAX);
    }

    #[test]
    fn small_files_are_read_up_to_the_limit_and_folders_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [7; 10]).unwrap();
        assert_eq!(read_small(&path, 10).unwrap(), [7; 10]);
        assert!(matches!(read_small(&path, 9), Err(Error::Malformed { .. })));
        assert!(read_small(dir.path(), 10).is_err());
        assert!(MappedFile::open(dir.path()).is_err());
    }
}
