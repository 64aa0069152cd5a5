//! Clusters on disk: `clusters.json`, centroids, and two mapped files from windows to clusters and back.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

use filebuffer::FileBuffer;
use offshoot_data::Split;
use offshoot_data::text::{WindowOptions, Windows};
use serde::{Deserialize, Serialize};

use super::error::ClusterError;
use super::members::Members;
use super::tree::{MAX_CLUSTERS, Tree};

/// Format of `clusters.json`.
pub(super) const FORMAT: u64 = 1;
/// What the clusters are, written last.
pub(super) const FACTS: &str = "clusters.json";
/// The centroids.
pub(super) const CENTROIDS: &str = "centroids.safetensors";
/// The cluster of each window, in 4 bytes, little-endian.
pub(super) const ASSIGNMENTS: &str = "assignments.u32";
/// The windows of each cluster, cluster by cluster, in 4 bytes, little-endian.
pub(super) const BY_CLUSTER: &str = "by-cluster.u32";
/// The vector of each window, little-endian.
pub(super) const EMBEDDINGS: &str = "embeddings.f32";
/// The encoder where it is ours.
pub(super) const ENCODER: &str = "encoder";
/// What was asked for, while it is not done.
pub(super) const REQUEST: &str = "request.json";
/// How far it is.
pub(super) const PROGRESS: &str = "progress.json";
/// What stands in a folder from the moment that a clustering is begun in it.
const LOCK: &str = "lock";
/// What is written into a folder; `--overwrite` removes these and nothing else.
const OWN: [&str; 9] = [
    FACTS,
    CENTROIDS,
    ASSIGNMENTS,
    BY_CLUSTER,
    EMBEDDINGS,
    ENCODER,
    REQUEST,
    PROGRESS,
    LOCK,
];
/// Largest `clusters.json`, in bytes: histograms of millions of clusters.
const MAX_FACTS: u64 = 1 << 30;

/// What a folder of clusters says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The format's number.
    pub format: u64,
    /// A hash of encoder, levels and centroids: clusters of two corpora have the same meaning where it is the same.
    pub clustering: String,
    /// The corpus.
    pub corpus: CorpusFacts,
    /// Its windows.
    pub windows: WindowFacts,
    /// What made vectors of them.
    pub encoder: EncoderFacts,
    /// The tree, from the root on.
    pub levels: Vec<LevelFacts>,
    /// Vectors of a step of k-means; 0 of a level stands for the recipe's number.
    pub sample: usize,
    /// Steps of k-means.
    pub steps: usize,
    /// The largest share of a cluster in a step, times the number of clusters; none for no limit, as JSON has no infinity.
    pub balance: Option<f64>,
    /// Decides all that is random.
    pub seed: u64,
    /// blake3 of the centroids' file; none where they are in another folder.
    pub centroids: Option<String>,
    /// blake3 of the assignments' file.
    pub assignments: String,
    /// Mean squared distance of a window's vector to its cluster's centroid.
    pub inertia: f64,
    /// Windows without a term that is known, whose vectors are zeros.
    pub blank: u64,
    /// Tokens that went through the encoder's network.
    pub encoded_tokens: u64,
    /// Floating-point operations of that, two a multiply-add.
    pub encoder_operations: f64,
    /// The domains.
    pub domains: Vec<DomainHistogram>,
}

/// Whose windows are clustered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusFacts {
    /// Where it was, as it was given.
    pub path: String,
    /// Its fingerprint.
    pub fingerprint: String,
    /// `train`, `val` or `test`.
    pub part: String,
}

/// How they were cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowFacts {
    /// How many.
    pub count: u64,
    /// Tokens of a window, at most.
    pub context: usize,
    /// Whether documents were joined.
    pub packing: bool,
    /// Whether each document begins with the begin-of-text token.
    pub begin_of_text: bool,
    /// Whether each document ends with the end-of-text token.
    pub end_of_text: bool,
}

impl WindowFacts {
    pub(super) fn of(windows: &Windows) -> Self {
        let options = windows.options();
        Self {
            count: windows.len(),
            context: options.context,
            packing: options.packing,
            begin_of_text: options.begin_of_text,
            end_of_text: options.end_of_text,
        }
    }
}

/// What made vectors of windows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncoderFacts {
    /// `bert` or `tf-idf`.
    pub kind: String,
    /// A hash of all that decides its vectors.
    pub hash: String,
    /// Where a sentence encoder was, as it was given.
    pub path: Option<String>,
    /// Numbers of a vector.
    pub width: usize,
}

/// One level of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelFacts {
    /// Children of a node.
    pub branches: usize,
    /// Clusters of this level: nodes of all levels down to it multiplied.
    pub clusters: usize,
}

/// One domain's windows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainHistogram {
    /// Its name.
    pub name: String,
    /// Windows.
    pub windows: u64,
    /// Windows in each cluster.
    pub histogram: Vec<u64>,
}

impl Facts {
    /// Clusters: leaves of the tree.
    #[must_use]
    pub fn clusters(&self) -> usize {
        self.levels.last().map_or(1, |level| level.clusters)
    }

    /// Windows in each cluster, of all domains, or of those named.
    #[must_use]
    pub fn histogram(&self, domains: Option<&[&str]>) -> Vec<u64> {
        let mut sum = vec![0; self.clusters()];
        let wanted = |domain: &&DomainHistogram| domains.is_none_or(|names| names.contains(&domain.name.as_str()));
        for domain in self.domains.iter().filter(wanted) {
            sum.iter_mut()
                .zip(&domain.histogram)
                .for_each(|(sum, count)| *sum += count);
        }
        sum
    }

    /// A histogram of leaves as one of the nodes of `level`, counted from 0 below the root.
    ///
    /// # Panics
    /// If there is no such level, or not a count for each leaf.
    #[must_use]
    pub fn at_level(&self, histogram: &[u64], level: usize) -> Vec<u64> {
        assert_eq!(histogram.len(), self.clusters(), "a count for each leaf");
        let leaves = self.clusters() / self.levels[level].clusters;
        histogram.chunks(leaves).map(|own| own.iter().sum()).collect()
    }

    fn check(&self, path: &Path) -> Result<(), ClusterError> {
        let damaged = |reason: String| ClusterError::damaged(path, reason);
        let mut clusters = 1usize;
        for level in &self.levels {
            let product = clusters
                .checked_mul(level.branches)
                .filter(|&n| (1..=MAX_CLUSTERS).contains(&n));
            clusters = product.filter(|&n| n == level.clusters).ok_or_else(|| {
                damaged(format!(
                    "a level of {} times {} is not {}",
                    clusters, level.branches, level.clusters
                ))
            })?;
        }
        let mut windows = 0u64;
        for domain in &self.domains {
            let own = domain
                .histogram
                .iter()
                .try_fold(0u64, |sum, &count| sum.checked_add(count));
            if domain.histogram.len() != clusters || own != Some(domain.windows) {
                let reason = format!(
                    "the histogram of `{}` does not count its windows by cluster",
                    domain.name
                );
                return Err(damaged(reason));
            }
            windows = windows.saturating_add(domain.windows);
        }
        if windows != self.windows.count {
            return Err(damaged(format!(
                "domains of {windows} windows, and {} in all",
                self.windows.count
            )));
        }
        Ok(())
    }
}

/// The clusters of a corpus, open for reading: the cluster of a window, and the windows of a cluster. Files are mapped, not read.
#[derive(Debug)]
pub struct Clusters {
    folder: PathBuf,
    facts: Facts,
    assignments: FileBuffer,
    members: std::sync::Arc<Members>,
}

impl Clusters {
    /// Opens a folder that [`build`](super::build()) or [`assign`](super::assign()) wrote.
    ///
    /// # Errors
    /// If it is not finished, a file is missing or of another size than `clusters.json` says, or the format is newer.
    pub fn open(folder: &Path) -> Result<Self, ClusterError> {
        let path = folder.join(FACTS);
        if !path.is_file() && folder.join(REQUEST).is_file() {
            return Err(ClusterError::Unfinished(folder.to_owned()));
        }
        let facts = read_facts(&path)?;
        let map = |name: &str| {
            let path = folder.join(name);
            let mapped = FileBuffer::open(&path).map_err(ClusterError::io(&path))?;
            if Some(mapped.len() as u64) != facts.windows.count.checked_mul(4) {
                let reason = format!("{} bytes for {} windows of 4", mapped.len(), facts.windows.count);
                return Err(ClusterError::damaged(&path, reason));
            }
            Ok(mapped)
        };
        let members = Members::mapped(&facts.histogram(None), map(BY_CLUSTER)?);
        Ok(Self {
            assignments: map(ASSIGNMENTS)?,
            members: std::sync::Arc::new(members),
            folder: folder.to_owned(),
            facts,
        })
    }

    /// What it says of itself.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the encoder is kept that was made with the clusters.
    #[must_use]
    pub fn encoder_folder(&self) -> PathBuf {
        self.folder.join(ENCODER)
    }

    /// The cluster of a window.
    ///
    /// # Errors
    /// [`ClusterError::Damaged`] where there is no such window, or the file names no cluster.
    pub fn cluster(&self, window: u64) -> Result<u32, ClusterError> {
        let path = self.folder.join(ASSIGNMENTS);
        let at = usize::try_from(window).ok().and_then(|window| window.checked_mul(4));
        let bytes = at
            .and_then(|at| self.assignments.get(at..))
            .and_then(<[u8]>::first_chunk);
        let Some(bytes) = bytes else {
            let reason = format!("window {window} of {}", self.facts.windows.count);
            return Err(ClusterError::damaged(&path, reason));
        };
        match u32::from_le_bytes(*bytes) {
            cluster if (cluster as usize) < self.facts.clusters() => Ok(cluster),
            other => {
                let reason = format!("window {window} is in cluster {other} of {}", self.facts.clusters());
                Err(ClusterError::damaged(&path, reason))
            }
        }
    }

    /// The windows of each cluster.
    #[must_use]
    pub fn members(&self) -> std::sync::Arc<Members> {
        std::sync::Arc::clone(&self.members)
    }

    /// The node of `level`, counted from 0 below the root, that a cluster lies under.
    ///
    /// # Panics
    /// If there is no such level.
    #[must_use]
    pub fn node(&self, cluster: u32, level: usize) -> u32 {
        cluster / (self.facts.clusters() / self.facts.levels[level].clusters) as u32
    }

    /// The centroids.
    ///
    /// # Errors
    /// If they are in another folder, or are not those that the clusters were made with.
    pub fn tree(&self) -> Result<Tree, ClusterError> {
        let Some(hash) = &self.facts.centroids else {
            return Err(ClusterError::NoCentroids(self.folder.clone()));
        };
        let path = self.folder.join(CENTROIDS);
        let found = offshoot_family::files::content_hash(&path).map_err(ClusterError::io(&path))?;
        if found != *hash {
            return Err(ClusterError::damaged(
                &path,
                format!("not what {FACTS} names: its hash differs"),
            ));
        }
        let branches: Vec<usize> = self.facts.levels.iter().map(|level| level.branches).collect();
        Tree::read(&path, &branches, self.facts.encoder.width)
    }

    /// Whether these are the clusters of `windows`: of the same part of the same corpus, cut the same way. Numbers of windows mean
    /// nothing otherwise.
    ///
    /// # Errors
    /// [`ClusterError::OtherWindows`] with the first difference.
    pub fn check(&self, windows: &Windows) -> Result<(), ClusterError> {
        let (own, theirs) = (&self.facts.windows, WindowFacts::of(windows));
        let (corpus, part) = (&self.facts.corpus, windows.split().name());
        let print = windows.corpus().fingerprint();
        let difference = if corpus.fingerprint != print {
            let short = |hash: &str| hash.chars().take(12).collect::<String>();
            format!(
                "the corpus at {} has the fingerprint {}, and {} was clustered; it was made again since, or is another",
                windows.corpus().folder().display(),
                short(print),
                short(&corpus.fingerprint)
            )
        } else if corpus.part != part {
            format!("the {} part was clustered, not the {part} part", corpus.part)
        } else if *own != theirs {
            format!("they were cut as {own:?}, not as {theirs:?}")
        } else {
            return Ok(());
        };
        Err(ClusterError::OtherWindows {
            folder: self.folder.clone(),
            difference,
        })
    }
}

fn read_facts(path: &Path) -> Result<Facts, ClusterError> {
    let damaged = |reason: String| ClusterError::damaged(path, reason);
    let file = File::open(path).map_err(ClusterError::io(path))?;
    let mut content = Vec::new();
    file.take(MAX_FACTS + 1)
        .read_to_end(&mut content)
        .map_err(ClusterError::io(path))?;
    if content.len() as u64 > MAX_FACTS {
        return Err(damaged(format!("larger than {} MiB", MAX_FACTS >> 20)));
    }
    let value: serde_json::Value = serde_json::from_slice(&content).map_err(|e| damaged(format!("not JSON: {e}")))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(FORMAT) => {}
        Some(found) if found > FORMAT => {
            return Err(ClusterError::NewerFormat {
                path: path.to_owned(),
                found,
                known: FORMAT,
            });
        }
        _ => return Err(damaged("no clusters: it has no format number".into())),
    }
    let facts: Facts = serde_json::from_value(value).map_err(|e| damaged(format!("no clusters of format 1: {e}")))?;
    facts.check(path)?;
    Ok(facts)
}

/// What windows of a folder were cut by, to cut those of another corpus alike.
impl From<&WindowFacts> for WindowOptions {
    fn from(facts: &WindowFacts) -> Self {
        Self {
            context: facts.context,
            packing: facts.packing,
            begin_of_text: facts.begin_of_text,
            end_of_text: facts.end_of_text,
        }
    }
}

/// The part of a corpus by its name.
///
/// # Errors
/// [`ClusterError::Setting`] where there is none of this name.
pub(super) fn part_named(name: &str) -> Result<Split, ClusterError> {
    let found = Split::ALL.into_iter().find(|split| split.name() == name);
    found.ok_or_else(|| ClusterError::setting("part", format!("`{name}` is none of train, val and test")))
}

impl Facts {
    /// The part of the corpus.
    ///
    /// # Errors
    /// [`ClusterError::Setting`] where the file names none.
    pub fn part(&self) -> Result<Split, ClusterError> {
        part_named(&self.corpus.part)
    }
}

/// A folder that clusters are written into, locked for this process as long as this value lives.
#[derive(Debug)]
pub struct ClusterFolder {
    path: PathBuf,
    _lock: File,
}

impl ClusterFolder {
    /// Makes a new one. A folder that holds clusters, finished or not, is refused, or emptied of them with `overwrite`; a folder of
    /// somebody else's files is refused, and so is one that `inputs`, which will be read, lie in.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub fn create(path: &Path, overwrite: bool, inputs: &[&Path]) -> Result<Self, ClusterError> {
        if let Ok(own) = path.canonicalize()
            && let Some(input) = inputs
                .iter()
                .find(|input| input.canonicalize().is_ok_and(|input| input.starts_with(&own)))
        {
            return Err(ClusterError::Foreign {
                folder: path.to_owned(),
                found: input.display().to_string(),
            });
        }
        std::fs::create_dir_all(path).map_err(ClusterError::io(path))?;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path).map_err(ClusterError::io(path))? {
            names.push(
                entry
                    .map_err(ClusterError::io(path))?
                    .file_name()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
        names.sort();
        let has = |name: &str| names.iter().any(|n| n == name);
        let own = |name: &String| OWN.contains(&name.as_str()) || name.starts_with(".writing-");
        let foreign = names.iter().find(|name| !has(LOCK) || !own(name));
        if let Some(found) = foreign {
            return Err(ClusterError::Foreign {
                folder: path.to_owned(),
                found: found.clone(),
            });
        }
        if !overwrite && has(FACTS) {
            return Err(ClusterError::Used(path.to_owned()));
        }
        if !overwrite && has(REQUEST) {
            return Err(ClusterError::Unfinished(path.to_owned()));
        }
        let folder = Self::lock(path)?;
        // First what says that the rest is whole.
        for name in OWN.iter().copied().filter(|name| *name != LOCK && has(name)) {
            remove(&path.join(name))?;
        }
        Ok(folder)
    }

    /// Opens one to go on with. Half-written leftovers of a killed process are removed.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub fn resume(path: &Path) -> Result<Self, ClusterError> {
        if !path.join(REQUEST).is_file() && !path.join(FACTS).is_file() {
            return Err(ClusterError::NothingToResume(path.to_owned()));
        }
        let folder = Self::lock(path)?;
        for entry in std::fs::read_dir(path).map_err(ClusterError::io(path))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(".writing-") {
                remove(&entry.path())?;
            }
        }
        Ok(folder)
    }

    fn lock(path: &Path) -> Result<Self, ClusterError> {
        let file = path.join(LOCK);
        let lock = File::create(&file).map_err(ClusterError::io(&file))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(ClusterError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(ClusterError::Io { path: file, source }),
        }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Takes a file of ours away, if it is there.
    pub(super) fn clear(&self, name: &str) -> Result<(), ClusterError> {
        remove(&self.file(name))
    }
}

fn remove(path: &Path) -> Result<(), ClusterError> {
    let removed = if path.is_dir() && !path.is_symlink() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ClusterError::io(path)(error)),
        _ => Ok(()),
    }
}
