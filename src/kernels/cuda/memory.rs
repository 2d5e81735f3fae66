use super::{Device, Error};
use bytemuck::Pod;
use std::fmt;
use std::sync::Arc;

/// An address in the device's memory.
pub type Address = u64;

/// A stream of the host runtime's, borrowed: a `CUstream`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(usize);

impl Stream {
    /// The stream of the legacy default.
    pub const DEFAULT: Self = Self(0);

    /// Wraps a `CUstream` of the device's context. Whoever enqueues to it keeps it alive.
    #[must_use]
    pub fn from_raw(raw: *mut std::ffi::c_void) -> Self {
        Self(raw as usize)
    }

    /// The `CUstream`.
    #[must_use]
    pub fn raw(self) -> *mut std::ffi::c_void {
        self.0 as *mut std::ffi::c_void
    }
}

/// Device memory for callers without an allocator of their own; freed when dropped.
pub struct Buffer {
    device: Arc<dyn Device>,
    address: Address,
    bytes: u64,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({:#x}, {} bytes)", self.address, self.bytes)
    }
}

impl Buffer {
    /// `bytes` of memory, as [`Device::allocate`] gives them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] saying what it was for.
    pub fn new(device: &Arc<dyn Device>, what: &str, bytes: u64) -> Result<Self, Error> {
        let address = device.allocate(what, bytes)?;
        Ok(Self { device: Arc::clone(device), address, bytes })
    }

    /// Memory that holds 0.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn zeroed(device: &Arc<dyn Device>, what: &str, bytes: u64) -> Result<Self, Error> {
        let buffer = Self::new(device, what, bytes)?;
        device.fill(Stream::DEFAULT, buffer.address, 0, bytes)?;
        device.synchronize(Stream::DEFAULT)?;
        Ok(buffer)
    }

    /// Memory that holds `values`.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn upload<T: Pod>(device: &Arc<dyn Device>, what: &str, values: &[T]) -> Result<Self, Error> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let buffer = Self::new(device, what, bytes.len() as u64)?;
        device.write(buffer.address, bytes)?;
        Ok(buffer)
    }

    /// What it holds, once everything enqueued before is done.
    ///
    /// # Errors
    /// [`Error::Driver`], also for what failed before.
    pub fn read<T: Pod>(&self, values: &mut [T]) -> Result<(), Error> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        if bytes.len() as u64 > self.bytes {
            return Err(Error::Operand { operand: "buffer", expected: bytes.len() as u64, got: self.bytes });
        }
        self.device.read(self.address, bytes)
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> Address {
        self.address
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whose memory it is.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.device.free(self.address, self.bytes);
    }
}
