//! What this machine is: for scorecards, checkpoints, and deciding what fits.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use offshoot_methods::train::trainer::Clock;
use offshoot_zoo::tensor::{self, Device, kernels};

use crate::failure::Failure;

/// Where numbers are computed.
pub struct Machine {
    /// The device.
    pub device: Device,
    /// Its name on the command line.
    pub name: String,
    /// Threads of the CPU.
    pub threads: usize,
}

impl Machine {
    /// The device of this name, with `threads` CPU threads (0: one per core).
    ///
    /// # Errors
    /// If this build has no such device.
    pub fn new(name: &str, threads: usize) -> Result<Self, Failure> {
        let device = tensor::device(name).map_err(|e| Failure::input(e, "`--device cpu` works everywhere"))?;
        kernels::Path::chosen()
            .map_err(|e| Failure::input(e, format!("unset {} for the best", kernels::PATH_VARIABLE)))?;
        kernels::keep_freed_memory();
        // A second call in one process keeps the first pool; only commands that run other commands make one.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        Ok(Self {
            device,
            name: name.into(),
            threads: rayon::current_num_threads(),
        })
    }

    /// The CPU or GPU, threads and kernel path, in words.
    pub fn description(&self) -> String {
        match self.name.as_str() {
            "cpu" => {
                let path = kernels::Path::chosen().map_or("unknown kernels", kernels::Path::name);
                format!("{}, {} threads, {path}", cpu(), self.threads)
            }
            other => format!("{other} ({:?})", self.device),
        }
    }
}

/// Brand of the CPU.
fn cpu() -> String {
    let brand = sysinfo::System::new().ok().and_then(|mut system| {
        system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
        system.cpus().first().map(|cpu| cpu.brand().trim().to_owned())
    });
    brand
        .filter(|b| !b.is_empty())
        .unwrap_or_else(|| std::env::consts::ARCH.into())
}

/// Bytes of memory that a new process could use; none where the system does not say.
pub fn available_memory() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    Some(system.available_memory()).filter(|&bytes| bytes > 0)
}

/// Most memory that this process has held, in MiB; none where the system does not say.
pub fn peak_rss_mib() -> Option<u64> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        let peak = getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss();
        // Kilobytes on Linux, bytes on Apple's systems.
        let unit = if cfg!(target_vendor = "apple") {
            1 << 20
        } else {
            1 << 10
        };
        u64::try_from(peak / unit).ok()
    }
    #[cfg(not(unix))]
    {
        None
    }
}

/// The clock of this process.
pub struct ProcessClock(Instant);

impl ProcessClock {
    /// Starts at zero.
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for ProcessClock {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall_seconds(&self) -> f64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64())
    }
}
