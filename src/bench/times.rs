//! Samples, and whether the machine let them be taken.

use super::record::Times;
use std::time::Instant;

/// Share of the processors that others may take before a measurement counts as noisy.
const BUSY: f64 = 0.05;
/// Most that the medians of the first and the second half of the samples may differ.
const DRIFT: f64 = 0.05;

impl Times {
    /// The statistics of `seconds`, taken while `watch` looked on.
    #[must_use]
    pub fn of(seconds: &[f64], watch: &Watch) -> Self {
        let mut noise = watch.noise();
        let samples_ms: Vec<f64> = seconds.iter().map(|seconds| seconds * 1e3).collect();
        let (first, second) = samples_ms.split_at(samples_ms.len() / 2);
        // Medians of two or three samples say nothing.
        if first.len() >= 4 {
            let (a, b) = (quantile(first, 0.5), quantile(second, 0.5));
            let drift = (a - b).abs() / a.min(b).max(f64::MIN_POSITIVE);
            if drift > DRIFT {
                noise.push(format!("the medians of both halves of the samples differ by {:.0}%", 100.0 * drift));
            }
        }
        let [median_ms, p10_ms, p90_ms] = [0.5, 0.1, 0.9].map(|share| quantile(&samples_ms, share));
        Self { median_ms, p10_ms, p90_ms, samples_ms, noise }
    }
}

/// The value below which `share` of the samples lie, between neighbours in proportion; 0 of none.
pub(super) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * (place - low as f64),
        _ => 0.0,
    }
}

/// Looks at what other processes, and the host of a virtual machine, take of the processors meanwhile.
#[derive(Debug, Clone)]
pub struct Watch {
    began: Instant,
    start: Option<Usage>,
}

#[derive(Debug, Clone, Copy)]
struct Usage {
    /// Seconds of all processors together that were not idle, and that the host took.
    busy: f64,
    stolen: f64,
    /// Seconds of this process.
    own: f64,
}

impl Watch {
    /// Starts to look.
    #[must_use]
    pub fn start() -> Self {
        Self { began: Instant::now(), start: usage() }
    }

    /// What disturbed since the start, in words; nothing where the system does not say, or the time was too short to tell.
    #[must_use]
    pub fn noise(&self) -> Vec<String> {
        let wall = self.began.elapsed().as_secs_f64();
        let (Some(a), Some(b)) = (self.start, usage()) else { return Vec::new() };
        // The system counts in steps of 10 ms.
        if wall < 0.2 {
            return Vec::new();
        }
        let capacity = wall * std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let others = (b.busy - a.busy - (b.own - a.own)) / capacity;
        let stolen = (b.stolen - a.stolen) / capacity;
        let mut noise = Vec::new();
        for (share, who) in [(others, "other processes"), (stolen, "the host")] {
            if share > BUSY {
                noise.push(format!("{who} took {:.0}% of the processors", 100.0 * share));
            }
        }
        noise
    }
}

#[cfg(target_os = "linux")]
fn usage() -> Option<Usage> {
    // SAFETY: sysconf takes a name and touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).filter_map(|x| x.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal.
    let [user, nice, system, _, _, irq, softirq, steal, ..] = fields[..] else { return None };
    let own = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = own.rsplit(')').next()?.split_whitespace().collect();
    // Behind the name: state is the first, utime and stime the 12th and 13th.
    let seconds = |at: usize| fields.get(at).and_then(|x| x.parse::<f64>().ok());
    let own = (seconds(11)? + seconds(12)?) / ticks;
    Some(Usage { busy: (user + nice + system + irq + softirq) / ticks, stolen: steal / ticks, own })
}

#[cfg(not(target_os = "linux"))]
fn usage() -> Option<Usage> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let samples = [4.0, 1.0, 3.0, 2.0, 5.0];
        assert_eq!([0.0, 0.1, 0.5, 0.9, 1.0].map(|share| quantile(&samples, share)), [1.0, 1.4, 3.0, 4.6, 5.0]);
        assert_eq!(quantile(&[7.0], 0.9), 7.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn drift_is_noise() {
        let watch = Watch::start();
        let steady: Vec<f64> = (0..20).map(|i| 1.0 + 0.01 * f64::from(i % 3)).collect();
        assert_eq!(Times::of(&steady, &watch).noise, Vec::<String>::new());
        let drifting: Vec<f64> = (0..20).map(|i| 1.0 + 0.05 * f64::from(i)).collect();
        let times = Times::of(&drifting, &watch);
        assert_eq!(times.noise.len(), 1, "{:?}", times.noise);
        assert_eq!(times.samples_ms.len(), 20);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_work_of_others_is_noise_and_our_own_is_not() {
        let spin = "import time\nt = time.time()\nwhile time.time() - t < 1.5: pass";
        let Ok(mut other) = std::process::Command::new("python3").args(["-c", spin]).spawn() else {
            eprintln!("skipped: no python3 to keep a processor busy");
            return;
        };
        let watch = Watch::start();
        std::thread::sleep(std::time::Duration::from_millis(1000));
        let noise = watch.noise();
        other.wait().unwrap();
        assert!(noise.iter().any(|reason| reason.contains("other processes")), "{noise:?}");
        let own = usage().unwrap().own;
        let until = Instant::now() + std::time::Duration::from_millis(300);
        while Instant::now() < until {}
        assert!(usage().unwrap().own >= own + 0.1);
    }
}
