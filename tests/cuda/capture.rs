//! A device that captures: what is enqueued to the stream of a capture is noted down, and runs when it is replayed. On a GPU the
//! driver does that; here it shows that a captured step takes everything that changes from device memory.

use duquant::kernels::cuda::{Address, Chip, Device, Error, Function, Kernel, Launch, MatrixProduct, Replay, Stream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// `inner`, with captures.
pub(crate) struct Capturing {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Arc<dyn Device>,
    /// What a capture has noted down so far.
    notes: Mutex<Vec<Note>>,
    captures: AtomicUsize,
    replays: AtomicUsize,
    launches: AtomicUsize,
}

#[derive(Clone)]
enum Note {
    Launch(Box<Launch>),
    Product(MatrixProduct),
    Copy(Address, Address, u64),
    Fill(Address, u8, u64),
}

/// No stream of the inner device's.
fn captured() -> Stream {
    Stream::from_raw(std::ptr::dangling_mut::<std::ffi::c_void>())
}

impl Capturing {
    pub(crate) fn new(inner: Arc<dyn Device>) -> Self {
        let (captures, replays, launches) = Default::default();
        Self { shared: Arc::new(Shared { inner, notes: Mutex::default(), captures, replays, launches }) }
    }

    /// Captures, replays, and launches outside of them.
    pub(crate) fn counts(&self) -> [usize; 3] {
        let Shared { captures, replays, launches, .. } = self.shared.as_ref();
        [captures, replays, launches].map(|count| count.load(Ordering::Relaxed))
    }

    /// Whether `stream` is the one of a capture, which then holds `note`.
    fn note(&self, stream: Stream, note: impl FnOnce() -> Note) -> bool {
        let noted = stream == captured();
        if noted {
            self.shared.notes.lock().unwrap().push(note());
        } else {
            self.shared.launches.fetch_add(1, Ordering::Relaxed);
        }
        noted
    }
}

impl Device for Capturing {
    fn chip(&self) -> Chip {
        self.shared.inner.chip()
    }

    fn name(&self) -> String {
        self.shared.inner.name()
    }

    fn load(&self, kernel: &Kernel) -> Result<Arc<Function>, Error> {
        self.shared.inner.load(kernel)
    }

    unsafe fn launch(&self, stream: Stream, launch: &Launch) -> Result<(), Error> {
        if self.note(stream, || Note::Launch(Box::new(launch.clone()))) {
            return Ok(());
        }
        // SAFETY: the caller's.
        unsafe { self.shared.inner.launch(stream, launch) }
    }

    unsafe fn matrix_product(&self, stream: Stream, product: &MatrixProduct) -> Result<(), Error> {
        if self.note(stream, || Note::Product(*product)) {
            return Ok(());
        }
        // SAFETY: the caller's.
        unsafe { self.shared.inner.matrix_product(stream, product) }
    }

    fn allocate(&self, what: &str, bytes: u64) -> Result<Address, Error> {
        self.shared.inner.allocate(what, bytes)
    }

    fn free(&self, address: Address, bytes: u64) {
        self.shared.inner.free(address, bytes);
    }

    fn write(&self, address: Address, bytes: &[u8]) -> Result<(), Error> {
        self.shared.inner.write(address, bytes)
    }

    fn read(&self, address: Address, bytes: &mut [u8]) -> Result<(), Error> {
        self.shared.inner.read(address, bytes)
    }

    fn copy(&self, stream: Stream, from: Address, to: Address, bytes: u64) -> Result<(), Error> {
        if self.note(stream, || Note::Copy(from, to, bytes)) {
            Ok(())
        } else {
            self.shared.inner.copy(stream, from, to, bytes)
        }
    }

    fn fill(&self, stream: Stream, address: Address, byte: u8, bytes: u64) -> Result<(), Error> {
        if self.note(stream, || Note::Fill(address, byte, bytes)) {
            return Ok(());
        }
        self.shared.inner.fill(stream, address, byte, bytes)
    }

    fn synchronize(&self, stream: Stream) -> Result<(), Error> {
        assert!(stream != captured(), "a capture cannot wait");
        self.shared.inner.synchronize(stream)
    }

    fn capture(&self, record: &mut dyn FnMut(Stream) -> Result<(), Error>) -> Result<Option<Box<dyn Replay>>, Error> {
        self.shared.captures.fetch_add(1, Ordering::Relaxed);
        record(captured())?;
        let notes = std::mem::take(&mut *self.shared.notes.lock().unwrap());
        Ok(Some(Box::new(Graph { notes, shared: Arc::clone(&self.shared) })))
    }
}

struct Graph {
    notes: Vec<Note>,
    shared: Arc<Shared>,
}

impl Replay for Graph {
    unsafe fn replay(&self, stream: Stream) -> Result<(), Error> {
        self.shared.replays.fetch_add(1, Ordering::Relaxed);
        let inner = self.shared.inner.as_ref();
        self.notes.iter().try_for_each(|note| match note {
            // SAFETY: the caller's.
            Note::Launch(launch) => unsafe { inner.launch(stream, launch) },
            // SAFETY: the caller's.
            Note::Product(product) => unsafe { inner.matrix_product(stream, product) },
            Note::Copy(from, to, bytes) => inner.copy(stream, *from, *to, *bytes),
            Note::Fill(address, byte, bytes) => inner.fill(stream, *address, *byte, *bytes),
        })
    }
}
