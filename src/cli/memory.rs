//! Peak memory of this process.

/// The most bytes that were resident at once since the process began; `None` where the system does not say.
pub(super) fn peak_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    if let Some(peak) = high_water_mark() {
        return Some(peak);
    }
    resource_usage()
}

/// `VmHWM`, which unlike `getrusage` starts anew when the process image is replaced, so that a large parent does not
/// show up in its child's number.
#[cfg(target_os = "linux")]
fn high_water_mark() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(unix)]
fn resource_usage() -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a rusage of this frame, which the call fills in; all-zero bytes are a valid rusage, so it
    // is initialised whatever the call does.
    let (status, usage) = unsafe { (libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()), usage.assume_init()) };
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    (status == 0).then(|| u64::try_from(usage.ru_maxrss).ok()?.checked_mul(unit)).flatten()
}

#[cfg(not(unix))]
fn resource_usage() -> Option<u64> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_stays_after_memory_is_given_back() {
        let size = 64 << 20;
        let touched = vec![1_u8; size];
        assert_eq!(std::hint::black_box(&touched).iter().map(|&x| u64::from(x)).sum::<u64>(), size as u64);
        drop(touched);
        for peak in [peak_bytes().unwrap(), resource_usage().unwrap()] {
            assert!(peak >= size as u64, "{peak}");
        }
    }
}
