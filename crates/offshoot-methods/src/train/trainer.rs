//! The one training loop: steps, logs, probes, checkpoints, interruption and resume, for any learner.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use offshoot_zoo::tensor::Device;
use serde::{Deserialize, Serialize};

use super::events::{EventWriter, EventsError};
use super::metrics::{MetricsError, MetricsWriter, truncate_after};
use super::run::RunFolder;
use super::state::{self, StateError, TrainState};

/// How often things happen during training.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cadence {
    /// Steps between two lines of the log.
    pub log_every: u64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// Steps between two probes of the children; 0 for none.
    pub probe_every: u64,
}

/// Steps in a row without a finite loss or gradient after which a run stops.
pub const MAX_SKIPPED: u64 = 100;

/// What one step did.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// Measured values by name; they depend on recipe, seed and data alone.
    pub values: Vec<(String, f64)>,
    /// Examples that were seen: images, or predicted tokens.
    pub examples: usize,
    /// Time spent waiting for data.
    pub waited: Duration,
    /// Why the update was skipped, if it was.
    pub skipped: Option<String>,
}

/// Something that learns step by step and can be saved between any two of them.
pub trait Learner {
    /// What can go wrong in it.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Steps from the start to the end.
    fn steps(&self) -> u64;

    /// Whether it starts from something that the recipe alone does not give. Then its start is saved before the first step.
    fn taken_over(&self) -> bool {
        false
    }

    /// Gets ready to make `first` the next step: called once, after [`restore`](Self::restore) if there was one.
    ///
    /// # Errors
    /// Its own.
    fn start(&mut self, first: u64) -> Result<(), Self::Error>;

    /// Step `step`, counted from 0. What it does depends on the state, the recipe and `step` alone.
    ///
    /// # Errors
    /// Its own.
    fn step(&mut self, step: u64, clock: &dyn Clock) -> Result<StepReport, Self::Error>;

    /// Measures what is learnt so far, by name.
    ///
    /// # Errors
    /// Its own.
    fn probe(&mut self) -> Result<Vec<(String, f64)>, Self::Error>;

    /// Something that it makes, to be looked at: what it was given, and what it made of it.
    ///
    /// # Errors
    /// Its own.
    fn samples(&mut self) -> Result<Vec<(String, String)>, Self::Error> {
        Ok(Vec::new())
    }

    /// Everything that the next steps depend on.
    fn state(&self) -> TrainState;

    /// Takes over a saved state.
    ///
    /// # Errors
    /// If it is not a state of this learner.
    fn restore(&mut self, state: TrainState) -> Result<(), Self::Error>;
}

/// Time, handed in from above: no library reads a clock of its own.
pub trait Clock: Sync {
    /// Time since some fixed moment.
    fn elapsed(&self) -> Duration;

    /// Seconds since 1970, for log files that want them.
    fn wall_seconds(&self) -> f64;
}

/// Progress, handed up.
pub trait Observer {
    /// After every step.
    fn stepped(&mut self, done: u64, of: u64, report: &StepReport, took: Duration);

    /// After a probe that found something to measure.
    fn probed(&mut self, done: u64, values: &[(String, f64)]);

    /// After samples were made: what each was given, and what was made of it.
    fn sampled(&mut self, done: u64, samples: &[(String, String)]);

    /// After a checkpoint was written.
    fn saved(&mut self, done: u64);

    /// Something worth a line.
    fn noted(&mut self, text: &str);
}

/// How training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// Asked to stop; this many steps are done and saved.
    Interrupted(u64),
}

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError<E: std::error::Error + 'static> {
    /// The learner failed.
    #[error(transparent)]
    Learner(E),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The metrics log cannot be written.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The TensorBoard file cannot be written.
    #[error(transparent)]
    Events(#[from] EventsError),
}

/// What the loop needs besides the learner.
pub struct Context<'a> {
    /// Where everything is written.
    pub run: &'a RunFolder,
    /// How often.
    pub cadence: &'a Cadence,
    /// Hash of the resolved recipe.
    pub recipe: &'a str,
    /// CPU or GPU, threads and kernel path.
    pub machine: &'a str,
    /// Time.
    pub clock: &'a dyn Clock,
    /// Set from outside to stop after the step in hand.
    pub stop: &'a AtomicBool,
}

/// Runs `learner` to its end or until asked to stop, from the newest checkpoint of the run if there is one.
///
/// # Errors
/// Whatever failed first. Everything up to the last checkpoint is on disk.
pub fn train<L: Learner>(
    learner: &mut L,
    context: &Context,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Outcome, TrainError<L::Error>> {
    let first = restore(learner, context, device, observer)?;
    let mut logs = Logs::open(context, first)?;
    if learner.taken_over() && state::list(&context.run.checkpoints()).is_empty() {
        save(learner, context, 0)?;
    }
    let steps = learner.steps();
    learner.start(first).map_err(TrainError::Learner)?;
    for step in first..steps {
        let began = context.clock.elapsed();
        let report = learner.step(step, context.clock).map_err(TrainError::Learner)?;
        let took = context.clock.elapsed().saturating_sub(began);
        let done = step + 1;
        let last = done == steps;
        logs.step(
            context,
            done,
            &report,
            took,
            last || done % context.cadence.log_every.max(1) == 0,
        )?;
        observer.stepped(done, steps, &report, took);
        if last || due(done, context.cadence.probe_every) {
            let values = learner.probe().map_err(TrainError::Learner)?;
            if !values.is_empty() {
                logs.probe(context, done, &values)?;
                observer.probed(done, &values);
            }
            let samples = learner.samples().map_err(TrainError::Learner)?;
            logs.samples(done, &samples)?;
            observer.sampled(done, &samples);
        }
        let stopping = context.stop.load(Ordering::Relaxed);
        if last || stopping || due(done, context.cadence.checkpoint_every) {
            // Logs first: a checkpoint promises that everything up to its step is on disk.
            logs.flush()?;
            save(learner, context, done)?;
            observer.saved(done);
        }
        if stopping && !last {
            return Ok(Outcome::Interrupted(done));
        }
    }
    Ok(Outcome::Finished)
}

fn due(done: u64, every: u64) -> bool {
    every > 0 && done.is_multiple_of(every)
}

fn save<L: Learner>(learner: &L, context: &Context, done: u64) -> Result<(), StateError> {
    let (checkpoints, state) = (context.run.checkpoints(), learner.state());
    state::save(
        &checkpoints,
        done,
        &state,
        context.recipe,
        context.machine,
        context.cadence.keep,
    )
}

/// Takes over the newest checkpoint, if there is one; the number of steps that are done.
fn restore<L: Learner>(
    learner: &mut L,
    context: &Context,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<u64, TrainError<L::Error>> {
    // A process that was killed between a new checkpoint and the removal of an old one left one too many.
    state::prune(&context.run.checkpoints(), context.cadence.keep)?;
    let Some((_, folder)) = state::list(&context.run.checkpoints()).pop() else {
        return Ok(0);
    };
    let (facts, state) = state::load(&folder, context.recipe, device)?;
    if facts.machine != context.machine {
        observer.noted(&format!(
            "the checkpoint was written on {}; this is {}: numbers may differ in the last bits",
            facts.machine, context.machine
        ));
    }
    learner.restore(state).map_err(TrainError::Learner)?;
    observer.noted(&format!("resumed after step {}", facts.step));
    Ok(facts.step)
}

/// The log files of a run. `metrics.jsonl` holds what recipe, seed and data decide and nothing else, so that it is the same
/// bytes however often the run was stopped; times go to `timing.jsonl` and TensorBoard.
struct Logs {
    metrics: MetricsWriter,
    timing: MetricsWriter,
    events: EventWriter,
    /// Where samples go, once there are any.
    samples: PathBuf,
}

impl Logs {
    fn open(context: &Context, first: u64) -> Result<Self, LogError> {
        // A run that was killed before its first checkpoint starts over with a log of its own.
        let open = |path: &Path| MetricsWriter::resume(path, first);
        let path = context.run.path();
        let now = context.clock.wall_seconds();
        let mut events = EventWriter::create(path, &format!("step-{first}"), now)?;
        if first > 0 {
            // Readers drop what an earlier start logged at this step and later: the step that is done already stays.
            events.resumed_at(first + 1, now)?;
        }
        Ok(Self {
            metrics: open(&path.join("metrics.jsonl"))?,
            timing: open(&path.join("timing.jsonl"))?,
            events,
            samples: {
                let samples = path.join("samples.jsonl");
                truncate_after(&samples, first)?;
                samples
            },
        })
    }

    fn samples(&self, done: u64, samples: &[(String, String)]) -> Result<(), LogError> {
        if samples.is_empty() {
            return Ok(());
        }
        let mut file = MetricsWriter::resume(&self.samples, done)?;
        for (prompt, text) in samples {
            file.write_texts(done, &[("prompt", prompt), ("text", text)])?;
        }
        Ok(file.sync()?)
    }

    fn step(
        &mut self,
        context: &Context,
        done: u64,
        report: &StepReport,
        took: Duration,
        log: bool,
    ) -> Result<(), LogError> {
        if !log && report.skipped.is_none() {
            return Ok(());
        }
        let seconds = took.as_secs_f64();
        let times = [
            ("step_seconds", seconds),
            ("data_wait_seconds", report.waited.as_secs_f64()),
            ("examples_per_second", report.examples as f64 / seconds.max(1e-9)),
        ];
        self.metrics.write(done, &report.values)?;
        self.timing.write(done, &times)?;
        let now = context.clock.wall_seconds();
        self.events.scalar(done, now, &report.values)?;
        self.events.scalar(done, now, &times)?;
        Ok(())
    }

    fn probe(&mut self, context: &Context, done: u64, values: &[(String, f64)]) -> Result<(), LogError> {
        self.metrics.write(done, values)?;
        self.events.scalar(done, context.clock.wall_seconds(), values)?;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), LogError> {
        self.metrics.sync()?;
        self.events.flush()?;
        Ok(())
    }
}

/// Either log.
#[derive(Debug)]
enum LogError {
    Metrics(MetricsError),
    Events(EventsError),
}

impl From<MetricsError> for LogError {
    fn from(error: MetricsError) -> Self {
        Self::Metrics(error)
    }
}

impl From<EventsError> for LogError {
    fn from(error: EventsError) -> Self {
        Self::Events(error)
    }
}

impl<E: std::error::Error + 'static> From<LogError> for TrainError<E> {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Metrics(error) => Self::Metrics(error),
            LogError::Events(error) => Self::Events(error),
        }
    }
}
