//! Progress: one live line with an ETA on a terminal, plain lines elsewhere.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use offshoot_methods::train::trainer::{Observer, StepReport};

use crate::terminal::complain;

/// Least time between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);
/// Characters of a sample that are shown.
const SAMPLE: usize = 160;
/// Steps that the rate is averaged over.
const WINDOW: usize = 50;

/// A task of known length.
pub struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    unit: &'static str,
    /// Units that were done before this process began.
    first: u64,
    total: u64,
    began: Instant,
    printed: Option<Instant>,
}

impl Progress {
    /// Shows `what` as `total` units of work, of which `first` were done before.
    pub fn new(what: impl Into<String>, first: u64, total: u64, unit: &'static str) -> Self {
        let what = what.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(what.clone());
            bar
        });
        Self {
            bar,
            what,
            unit,
            first,
            total,
            began: Instant::now(),
            printed: None,
        }
    }

    /// `done` units are done; `message` says more.
    pub fn at(&mut self, done: u64, message: &str) {
        let here = done.saturating_sub(self.first).max(1) as f64;
        let left = self.began.elapsed().as_secs_f64() / here * self.total.saturating_sub(done) as f64;
        let gap = if message.is_empty() { "" } else { "  " };
        let message = format!("{message}{gap}eta {}", duration(left));
        if let Some(bar) = &self.bar {
            bar.set_message(message);
            bar.set_position(done);
            return;
        }
        let due = self.printed.is_none_or(|last| last.elapsed() >= PLAIN_EVERY);
        if due || done == self.total {
            self.printed = Some(Instant::now());
            complain(&format!(
                "{}: {done}/{} {}  {message}",
                self.what, self.total, self.unit
            ));
        }
    }

    /// A line above the progress.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| complain(text)),
            None => complain(text),
        }
    }

    /// Takes the live line away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Seconds as `1:02:03` or `2:03`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

/// Training progress.
pub struct TrainingProgress {
    progress: Option<Progress>,
    recent: VecDeque<(Duration, Duration)>,
    probe: String,
    /// All time in steps and all time waiting for data.
    pub totals: (Duration, Duration),
    /// Steps whose update was skipped.
    pub skipped: u64,
}

impl TrainingProgress {
    /// Nothing shown yet.
    pub fn new() -> Self {
        Self {
            progress: None,
            recent: VecDeque::new(),
            probe: String::new(),
            totals: Default::default(),
            skipped: 0,
        }
    }

    /// Takes the live line away.
    pub fn finish(&self) {
        if let Some(progress) = &self.progress {
            progress.finish();
        }
    }

    fn note(&self, text: &str) {
        match &self.progress {
            Some(progress) => progress.note(text),
            None => complain(text),
        }
    }
}

impl Observer for TrainingProgress {
    fn stepped(&mut self, done: u64, of: u64, report: &StepReport, took: Duration) {
        self.recent.push_back((took, report.waited));
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        self.totals.0 += took;
        self.totals.1 += report.waited;
        if let Some(reason) = &report.skipped {
            self.skipped += 1;
            self.note(&format!("step {done}: update skipped: {reason}"));
        }
        let (took, waited) = self.recent.iter().fold((0.0, 0.0), |sum, (took, waited)| {
            (sum.0 + took.as_secs_f64(), sum.1 + waited.as_secs_f64())
        });
        let value = |name: &str| {
            report
                .values
                .iter()
                .find(|(n, _)| n == name)
                .map_or(f64::NAN, |(_, v)| *v)
        };
        let message = format!(
            "loss {:.3}  lr {:.2e}  {:.2} s/step  data wait {:.1} %{}",
            value("loss"),
            value("learning_rate"),
            took / self.recent.len() as f64,
            100.0 * waited / took.max(1e-9),
            self.probe
        );
        let progress = self.progress.get_or_insert_with(|| {
            let mut progress = Progress::new("pretrain", done - 1, of, "steps");
            progress.began -= Duration::from_secs_f64(took);
            progress
        });
        progress.at(done, &message);
    }

    fn probed(&mut self, done: u64, values: &[(String, f64)]) {
        let metric = values
            .first()
            .and_then(|(name, _)| name.split('/').next())
            .unwrap_or_default()
            .to_owned();
        // `METRIC/CHILD`, and of some children `METRIC/CHILD/DOMAIN`.
        let parts = |name: &str| name.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
        let children = || values.iter().filter(|(name, _)| parts(name).len() < 2);
        let numbers: Vec<String> = children().map(|(_, v)| format!("{v:.3}")).collect();
        self.probe = format!("  {metric} {}", numbers.join(" "));
        let each: Vec<String> = children()
            .map(|(name, v)| format!("{} {v:.3}", parts(name).join(" ")))
            .collect();
        let domains = values.iter().filter(|(name, _)| parts(name).len() == 2);
        let domains: Vec<String> = domains.map(|(name, v)| format!("{} {v:.3}", parts(name)[1])).collect();
        let domains = if domains.is_empty() {
            String::new()
        } else {
            format!("; the last by domain: {}", domains.join(", "))
        };
        self.note(&format!(
            "step {done}: {metric} of children {}{domains}",
            each.join(", ")
        ));
    }

    fn sampled(&mut self, done: u64, samples: &[(String, String)]) {
        for (prompt, text) in samples {
            let short: String = text.chars().take(SAMPLE).collect();
            let more = if short.len() < text.len() { "..." } else { "" };
            // Control characters of a made-up text are not a terminal's business.
            self.note(&format!("step {done}: {:?}", format!("{prompt}{short}{more}")));
        }
    }

    fn saved(&mut self, _: u64) {}

    fn noted(&mut self, text: &str) {
        self.note(text);
    }
}
