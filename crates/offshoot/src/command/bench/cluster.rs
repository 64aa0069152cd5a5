//! `offshoot bench cluster`: seconds, inertia and balance of k-means on vectors from a file, as one line of JSON.
//!
//! The work is that of `benches/rivals/cluster.py`: centroids from vectors in memory, then the nearest centroid of each vector.

use std::time::Instant;

use offshoot_methods::specialize::cluster::{Level, Settings, Tree, Vectors, fit};
use offshoot_methods::specialize::histogram;
use offshoot_zoo::tensor::kernels::on_workers;
use serde_json::json;

use super::{Seconds, at_least_one, rounded};
use crate::args::BenchCluster;
use crate::failure::Failure;
use crate::machine::{Machine, peak_rss_mib};
use crate::terminal::say;

/// Vectors in memory.
struct InMemory {
    values: Vec<f32>,
    width: usize,
}

impl Vectors for InMemory {
    fn len(&self) -> u64 {
        (self.values.len() / self.width) as u64
    }

    fn width(&self) -> usize {
        self.width
    }

    fn read(&self, number: u64, row: &mut [f32]) {
        row.copy_from_slice(&self.values[number as usize * self.width..][..self.width]);
    }
}

/// Runs the command.
pub fn run(args: &BenchCluster) -> Result<(), Failure> {
    let machine = Machine::new(&args.compute.device, args.compute.threads)?;
    at_least_one("--width", args.width, "number")?;
    at_least_one("--passes", args.passes, "pass")?;
    let bytes = std::fs::read(&args.vectors)?;
    let (fours, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || !fours.len().is_multiple_of(args.width) {
        return Err(Failure::input(
            format!(
                "{} holds no whole vectors of {} numbers",
                args.vectors.display(),
                args.width
            ),
            "give the width that `offshoot cluster` said",
        ));
    }
    let vectors = InMemory {
        values: fours.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        width: args.width,
    };
    let (mut seconds, mut passes) = (Vec::new(), Vec::new());
    for pass in 0..args.passes {
        let usual = Settings::new(args.k, args.seed + pass as u64);
        let settings = Settings {
            sample: args.sample.unwrap_or(usual.sample),
            steps: args.steps,
            balance: args.balance,
            ..usual
        };
        let began = Instant::now();
        let found = on_workers(|| -> Result<_, Failure> {
            let fitted = fit(&vectors, args.k, &settings, "bench")?;
            let tree = Tree {
                width: args.width,
                levels: vec![Level {
                    branches: args.k,
                    children: vec![(fitted.centroids.len() / args.width) as u32],
                    centroids: fitted.centroids,
                }],
            };
            Ok(tree.clusters_of(&vectors.values))
        })?;
        seconds.push(began.elapsed().as_secs_f64());
        let mut counts = vec![0; args.k];
        found.iter().for_each(|(cluster, _)| counts[*cluster as usize] += 1);
        let shares = histogram::shares(&counts, "the file")?;
        passes.push(json!({
            "seconds": rounded(seconds[pass]),
            "inertia": found.iter().map(|(_, distance)| f64::from(*distance)).sum::<f64>() / found.len() as f64,
            "largest_times_k": histogram::largest(&shares) * args.k as f64,
            "entropy": histogram::entropy(&shares),
        }));
    }
    let seconds = Seconds::new(seconds);
    let line = json!({
        "vectors": vectors.len(),
        "width": args.width,
        "k": args.k,
        "balance": if args.balance.is_finite() { json!(args.balance) } else { json!("inf") },
        "version": env!("CARGO_PKG_VERSION"),
        "threads": machine.threads,
        "median_s": seconds.median(),
        "min_s": seconds.min(),
        "passes": passes,
        "peak_rss_mib": peak_rss_mib(),
    });
    say(&line.to_string())?;
    Ok(())
}
