//! `offshoot bench knn`: seconds of a search for nearest neighbours among made-up features, as one line of JSON.
//!
//! The work is that of `benches/rivals/knn.py`: exact, by cosine, with the features not yet normalised.

use std::time::Instant;

use offshoot_eval::FeatureMatrix;
use offshoot_eval::knn::neighbours;
use serde_json::json;

use super::{Seconds, at_least_one, fits, noise};
use crate::args::BenchKnn;
use crate::failure::Failure;
use crate::machine::{Machine, peak_rss_mib};
use crate::terminal::say;

/// Runs the command.
pub fn run(args: &BenchKnn) -> Result<(), Failure> {
    let machine = Machine::new(&args.compute.device, args.compute.threads)?;
    for (option, value, one) in [
        ("--references", args.references, "reference"),
        ("--queries", args.queries, "query"),
        ("--dim", args.dim, "channel"),
        ("--k", args.k, "neighbour"),
        ("--passes", args.passes, "pass"),
    ] {
        at_least_one(option, value, one)?;
    }
    if args.k > args.references {
        return Err(Failure::input(
            format!("--k {} is more than the {} references", args.k, args.references),
            "ask for fewer neighbours, or give more --references",
        ));
    }
    let rows = args.references as f64 + args.queries as f64;
    let numbers = rows * args.dim as f64 + 2.0 * args.queries as f64 * args.k as f64;
    fits("the search", 4.0 * numbers, "fewer --references or --queries")?;
    let matrix = |first: usize, rows: usize| {
        let values = (first * args.dim..(first + rows) * args.dim).map(noise).collect();
        FeatureMatrix::new(rows, args.dim, values)
    };
    let references = matrix(0, args.references)?;
    let queries = matrix(args.references, args.queries)?;
    let (mut seconds, mut similarity) = (Vec::with_capacity(args.passes), f64::NAN);
    for pass in 0..args.warmup + args.passes {
        let began = Instant::now();
        let found = neighbours(&references, &queries, args.k, &machine.device)?;
        if pass >= args.warmup {
            seconds.push(began.elapsed().as_secs_f64());
        }
        let sum: f64 = found.similarities.iter().map(|&s| f64::from(s)).sum();
        similarity = sum / found.similarities.len() as f64;
    }
    let seconds = Seconds::new(seconds);
    let line = json!({
        "references": args.references,
        "queries": args.queries,
        "dim": args.dim,
        "k": args.k,
        "version": env!("CARGO_PKG_VERSION"),
        "device": machine.name,
        "threads": machine.threads,
        "dtype": "fp32",
        "passes": seconds.count(),
        "queries_per_s": (args.queries as f64 / seconds.median() * 1e2).round() / 1e2,
        "median_s": seconds.median(),
        "min_s": seconds.min(),
        "peak_rss_mib": peak_rss_mib(),
        "checksum": similarity,
        "flops": 2.0 * args.references as f64 * args.queries as f64 * args.dim as f64,
    });
    say(&line.to_string())?;
    Ok(())
}
