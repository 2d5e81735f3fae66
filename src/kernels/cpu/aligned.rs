use memmap2::MmapMut;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, to which the buffers of the kernels are aligned.
pub(super) const LINE: usize = 64;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// A zeroed buffer that begins on a cache line, so that no full vector straddles two; one of 2 MiB or more begins on a huge
/// page, and on Linux asks for such pages. Kernels take any slice; on operands and results that lie like this they are
/// faster, and as fast in the next process: small pages are scattered over the sets of a cache by luck. `T` is a number:
/// its size divides a cache line.
#[derive(Debug)]
pub struct Aligned<T> {
    memory: Memory<T>,
    /// Elements in front of the first one in use.
    start: usize,
    len: usize,
}

#[derive(Debug)]
enum Memory<T> {
    Heap(Vec<T>),
    Pages(MmapMut),
}

impl<T: bytemuck::Pod> Aligned<T> {
    /// `len` zeros.
    #[must_use]
    pub fn new(len: usize) -> Self {
        const { assert!(size_of::<T>() > 0 && LINE.is_multiple_of(size_of::<T>())) };
        if let Some((pages, start)) = len.checked_mul(size_of::<T>()).and_then(huge_pages) {
            return Self { memory: Memory::Pages(pages), start: start / size_of::<T>(), len };
        }
        let data = vec![T::zeroed(); len + LINE / size_of::<T>()];
        let start = line_offset(&data);
        Self { memory: Memory::Heap(data), start, len }
    }

    /// Bytes in use.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// All of it.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        let data = match &self.memory {
            Memory::Heap(data) => data.as_slice(),
            Memory::Pages(pages) => bytemuck::cast_slice::<u8, T>(pages),
        };
        &data[self.start..self.start + self.len]
    }

    /// All of it.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let data = match &mut self.memory {
            Memory::Heap(data) => data.as_mut_slice(),
            Memory::Pages(pages) => bytemuck::cast_slice_mut::<u8, T>(pages),
        };
        &mut data[self.start..self.start + self.len]
    }
}

impl<T: bytemuck::Pod + PartialEq> PartialEq for Aligned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl<T: bytemuck::Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T: bytemuck::Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.as_mut_slice()
    }
}

impl<T: bytemuck::Pod> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

/// Untouched zeros for `bytes` bytes, and the bytes in front of the first huge page among them. `None` for less than such a
/// page, or where the system has none to give: the heap then says what there is to say.
fn huge_pages(bytes: usize) -> Option<(MmapMut, usize)> {
    if bytes < HUGE {
        return None;
    }
    // What lies in front of the huge page is never touched and takes no memory.
    let len = bytes.checked_next_multiple_of(LINE)?.checked_add(HUGE)?;
    let pages = memmap2::MmapOptions::new().len(len).map_anon().ok()?;
    let start = pages.as_ptr().align_offset(HUGE);
    if start > HUGE {
        return None;
    }
    // The rest behind the last whole huge page stays in small ones, so that no more memory is taken than is in use. A
    // system without huge pages refuses, and the buffer is as good as any.
    #[cfg(target_os = "linux")]
    let _refused = pages.advise_range(memmap2::Advice::HugePage, start, bytes / HUGE * HUGE);
    Some((pages, start))
}

/// Elements to skip so that the rest begins on a cache line; at most one line.
pub(super) fn line_offset<T>(data: &[T]) -> usize {
    let offset = data.as_ptr().align_offset(LINE);
    if offset <= LINE / size_of::<T>() { offset } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_begin_on_a_line_or_on_a_huge_page() {
        for (len, alignment) in
            [(0, LINE), (1, LINE), (1000, LINE), (HUGE / 4, HUGE), (HUGE / 4 + 17, HUGE), (HUGE, HUGE)]
        {
            let mut buffer = Aligned::<f32>::new(len);
            assert_eq!((buffer.len(), buffer.bytes()), (len, 4 * len));
            assert_eq!(buffer.as_ptr().align_offset(alignment), 0, "{len} floats");
            assert!(buffer.iter().all(|&x| x == 0.0));
            buffer.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
            assert!(buffer.clone() == buffer && buffer.iter().enumerate().all(|(i, &x)| x == i as f32));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_not_touched_takes_no_memory() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/statm").unwrap();
            status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let before = resident();
        let mut buffer = Aligned::<u8>::new(1 << 30);
        buffer[5 * HUGE] = 1;
        // Other tests allocate beside this one, but nothing like what was asked for here.
        assert!(resident() < before + (1 << 29), "{before} bytes before, {} with one byte in use", resident());
    }
}
