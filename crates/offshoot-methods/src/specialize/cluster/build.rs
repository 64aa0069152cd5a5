//! From windows to clusters on disk: vectors of all windows into a file, k-means level by level on samples of it, assignment.
//!
//! Vectors are made once and lie in a mapped file, so that memory grows with samples and centroids and by 8 bytes a window, and never
//! with vectors. The file also is what a stopped clustering goes on with; levels of the tree are saved as they are done.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};

use filebuffer::FileBuffer;
use offshoot_data::text::{Windows, permuted};
use offshoot_family::files::{content_hash, write_atomic};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::encoder::Encoder;
use super::error::ClusterError;
use super::folder::{
    ASSIGNMENTS, BY_CLUSTER, CENTROIDS, ClusterFolder, Clusters, CorpusFacts, DomainHistogram, EMBEDDINGS, ENCODER,
    EncoderFacts, FACTS, FORMAT, Facts, LevelFacts, PROGRESS, REQUEST, WindowFacts,
};
use super::kmeans::{Settings, Vectors, fit};
use super::members::Members;
use super::tfidf::{TfIdf, TfIdfSettings};
use super::tree::{Level, MAX_CLUSTERS, Tree};

/// Windows that are embedded together, and made safe on disk: what a crash loses.
const BLOCK: u64 = 128;
/// Windows that are assigned together.
const ASSIGN: u64 = 8192;
/// Nodes of a level that are split before progress is told.
const NODES: usize = 16;
/// Windows that the terms of tf-idf are taken from, at most.
const TERM_WINDOWS: u64 = 16_384;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Terms are counted; in windows.
    Terms,
    /// Windows become vectors; in windows.
    Embed,
    /// Nodes of a level, counted from 0 below the root, are split; in nodes.
    Split(usize),
    /// Windows are assigned to the nodes of a level; in windows.
    Assign(usize),
}

/// Watches a clustering, and may stop it.
pub trait Watch {
    /// `done` of `total` units of a phase are done.
    fn at(&mut self, phase: Phase, done: u64, total: u64);

    /// Whether to stop at the next place where nothing is lost.
    fn is_stopped(&self) -> bool;
}

/// How a clustering ended.
#[derive(Debug)]
pub enum Outcome {
    /// It is done, and this is what was written.
    Done(Box<Facts>),
    /// It was stopped, and can be gone on with.
    Stopped,
}

/// What is to be clustered, and how.
pub struct Request<'a> {
    /// The windows.
    pub windows: &'a Windows,
    /// The encoder with the path that it was given by; none for terms of the windows themselves.
    pub encoder: Option<(&'a Encoder, String)>,
    /// Numbers of the terms.
    pub terms: TfIdfSettings,
    /// Children of a node at each level: their product is the number of clusters.
    pub branches: Vec<usize>,
    /// Vectors of a step of k-means; none for the recipe's number at each level, see [`Settings::new`].
    pub sample: Option<usize>,
    /// Steps of k-means.
    pub steps: usize,
    /// The largest share of a cluster in a step, times the number of clusters.
    pub balance: f64,
    /// Decides all that is random.
    pub seed: u64,
    /// Whether the vectors' file stays: `[windows, width]` in fp32, little-endian.
    pub keep_embeddings: bool,
}

impl Request<'_> {
    fn settings(&self, branches: usize) -> Settings {
        let usual = Settings::new(branches, self.seed);
        Settings {
            sample: self.sample.unwrap_or(usual.sample),
            steps: self.steps,
            balance: self.balance,
            seed: self.seed,
        }
    }

    /// Whether there are windows enough, and settings that can work: all that is known before anything is read or made.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), ClusterError> {
        has_windows(self.windows)?;
        let clusters = self
            .branches
            .iter()
            .try_fold(1usize, |product, &n| product.checked_mul(n));
        let Some(clusters) = clusters.filter(|n| (1..=MAX_CLUSTERS).contains(n) && !self.branches.is_empty()) else {
            let reason = format!("{:?} gives no number of clusters in 1..={MAX_CLUSTERS}", self.branches);
            return Err(ClusterError::setting("k", reason));
        };
        if clusters as u64 > self.windows.len() {
            return Err(ClusterError::TooFew {
                k: clusters,
                windows: self.windows.len(),
            });
        }
        // What only the splits would find out is found before hours of embedding.
        for &branches in &self.branches {
            let settings = self.settings(branches);
            let probe = Probe(branches as u64);
            fit(
                &probe,
                branches,
                &Settings {
                    steps: settings.steps.min(1),
                    ..settings
                },
                "check",
            )?;
        }
        Ok(())
    }
}

/// Made-up vectors that settings are tried on.
struct Probe(u64);

impl Vectors for Probe {
    fn len(&self) -> u64 {
        self.0
    }

    fn width(&self) -> usize {
        1
    }

    fn read(&self, number: u64, row: &mut [f32]) {
        row[0] = number as f32;
    }
}

fn has_windows(windows: &Windows) -> Result<(), ClusterError> {
    if windows.is_empty() {
        return Err(ClusterError::NoWindows {
            place: windows.corpus().folder().to_owned(),
            part: windows.split().name(),
        });
    }
    if windows.len() > u64::from(u32::MAX) {
        let reason = format!("{} windows; at most 2^32 - 1 are clustered at once", windows.len());
        return Err(ClusterError::setting("corpus", reason));
    }
    Ok(())
}

/// Clusters the windows of a request into `folder`, or goes on with what was stopped there. The bytes are the same for any number of
/// threads, and wherever it was stopped; `clusters.json` is written last.
///
/// # Errors
/// Where the request cannot be met, a window cannot be read, a vector is not finite, or the folder was begun with another request.
pub fn build(folder: &ClusterFolder, request: &Request<'_>, watch: &mut dyn Watch) -> Result<Outcome, ClusterError> {
    request.check()?;
    let encoder = match &request.encoder {
        Some((encoder, _)) => json!(encoder.hash()),
        None => json!({
            "dimensions": request.terms.dimensions,
            "terms": request.terms.terms,
            "seed": request.terms.seed,
        }),
    };
    let samples: Vec<usize> = request.branches.iter().map(|&n| request.settings(n).sample).collect();
    let asked = json!({
        "corpus": request.windows.corpus().fingerprint(),
        "part": request.windows.split().name(),
        "windows": WindowFacts::of(request.windows),
        "encoder": encoder,
        "k": request.branches,
        "sample": samples,
        "steps": request.steps,
        "balance": request.balance,
        "seed": request.seed,
    });
    if let Some(done) = begin(folder, &asked, request.keep_embeddings)? {
        return Ok(done);
    }
    let terms;
    let (encoder, path) = match &request.encoder {
        Some((encoder, path)) => (*encoder, Some(path.clone())),
        None => {
            terms = Encoder::TfIdf(terms_of(folder, request, watch)?);
            (&terms, None)
        }
    };
    let Some(vectors) = embed(folder, request.windows, encoder, watch)? else {
        return Ok(Outcome::Stopped);
    };
    let Some((tree, found)) = grow(folder, request, &vectors, watch)? else {
        return Ok(Outcome::Stopped);
    };
    let centroids = folder.file(CENTROIDS);
    let centroids = content_hash(&centroids).map_err(ClusterError::io(&centroids))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"offshoot clusters 1");
    for part in [encoder.hash(), &centroids] {
        hasher.update(part.as_bytes());
    }
    let mut clusters = 1;
    let levels = tree.levels.iter().map(|level| {
        clusters *= level.branches;
        LevelFacts {
            branches: level.branches,
            clusters,
        }
    });
    let facts = Facts {
        format: FORMAT,
        clustering: hasher.finalize().to_hex().to_string(),
        corpus: corpus_facts(request.windows),
        windows: WindowFacts::of(request.windows),
        encoder: EncoderFacts {
            kind: encoder.kind().into(),
            hash: encoder.hash().into(),
            path,
            width: encoder.width(),
        },
        levels: levels.collect(),
        sample: request.sample.unwrap_or(0),
        steps: request.steps,
        balance: Some(request.balance).filter(|balance| balance.is_finite()),
        seed: request.seed,
        centroids: Some(centroids),
        assignments: String::new(),
        inertia: 0.0,
        blank: 0,
        encoded_tokens: vectors.progress.tokens,
        encoder_operations: 2.0 * vectors.progress.macs as f64,
        domains: Vec::new(),
    };
    finish(folder, facts, request.windows, &found, request.keep_embeddings)
}

/// Assigns the windows of a corpus to the clusters of another, by the encoder that these were made with, into `folder`, or goes on
/// with what was stopped there (section 3.1, step 3).
///
/// # Errors
/// As [`build`]; and where the encoder is not the one of the clusters, or these have no centroids.
pub fn assign(
    folder: &ClusterFolder,
    clusters: &Clusters,
    encoder: &Encoder,
    windows: &Windows,
    keep_embeddings: bool,
    watch: &mut dyn Watch,
) -> Result<Outcome, ClusterError> {
    has_windows(windows)?;
    let own = clusters.facts();
    if encoder.hash() != own.encoder.hash {
        return Err(ClusterError::OtherEncoder {
            folder: clusters.folder().to_owned(),
            wanted: own.encoder.hash.clone(),
            found: encoder.hash().into(),
        });
    }
    let tree = clusters.tree()?;
    let asked = json!({
        "corpus": windows.corpus().fingerprint(),
        "part": windows.split().name(),
        "windows": WindowFacts::of(windows),
        "clustering": own.clustering,
    });
    if let Some(done) = begin(folder, &asked, keep_embeddings)? {
        return Ok(done);
    }
    let Some(vectors) = embed(folder, windows, encoder, watch)? else {
        return Ok(Outcome::Stopped);
    };
    let mut found = Found::new(windows.len());
    for level in 0..tree.levels.len() {
        if !found.descend(&tree, level, &vectors, watch) {
            return Ok(Outcome::Stopped);
        }
    }
    let facts = Facts {
        corpus: corpus_facts(windows),
        windows: WindowFacts::of(windows),
        centroids: None,
        encoded_tokens: vectors.progress.tokens,
        encoder_operations: 2.0 * vectors.progress.macs as f64,
        ..own.clone()
    };
    finish(folder, facts, windows, &found, keep_embeddings)
}

fn corpus_facts(windows: &Windows) -> CorpusFacts {
    CorpusFacts {
        path: windows.corpus().folder().display().to_string(),
        fingerprint: windows.corpus().fingerprint().into(),
        part: windows.split().name().into(),
    }
}

/// Notes what is asked for, or compares it with what the folder was begun with. What is done already is given back.
fn begin(
    folder: &ClusterFolder,
    asked: &serde_json::Value,
    keep_embeddings: bool,
) -> Result<Option<Outcome>, ClusterError> {
    let path = folder.file(REQUEST);
    if folder.file(FACTS).is_file() {
        // Finished, and perhaps killed while it was tidied up: what was asked is gone once that is done.
        let clusters = Clusters::open(folder.path())?;
        tidy(folder, keep_embeddings)?;
        return Ok(Some(Outcome::Done(Box::new(clusters.facts().clone()))));
    }
    if !path.is_file() {
        let text = serde_json::to_string_pretty(asked).map_err(|e| ClusterError::damaged(&path, e.to_string()))?;
        write_atomic(&path, |out| writeln!(out, "{text}")).map_err(ClusterError::io(&path))?;
        return Ok(None);
    }
    let content = std::fs::read(&path).map_err(ClusterError::io(&path))?;
    let begun: serde_json::Value =
        serde_json::from_slice(&content).map_err(|e| ClusterError::damaged(&path, format!("not JSON: {e}")))?;
    let keys = asked.as_object().into_iter().chain(begun.as_object());
    let mut keys = keys.flat_map(|object| object.keys());
    match keys.find(|key| begun.get(key) != asked.get(key)) {
        None => Ok(None),
        Some(key) => Err(ClusterError::OtherRequest {
            folder: folder.path().to_owned(),
            what: key.clone(),
        }),
    }
}

/// The texts of windows, without tokens that begin or end a text.
fn texts(windows: &Windows, numbers: &[u64]) -> Result<Vec<String>, ClusterError> {
    let text = |&number: &u64| -> Result<String, ClusterError> {
        let window = windows.get(number)?;
        Ok(windows.corpus().tokenizer().decode(&window.tokens, false)?)
    };
    numbers.par_iter().map(text).collect()
}

/// The terms of a sample of the windows, made once.
fn terms_of(folder: &ClusterFolder, request: &Request<'_>, watch: &mut dyn Watch) -> Result<TfIdf, ClusterError> {
    let place = folder.file(ENCODER);
    if TfIdf::is_in(&place) {
        return TfIdf::open(&place);
    }
    let n = request.windows.len();
    let count = n.min(TERM_WINDOWS);
    watch.at(Phase::Terms, 0, count);
    let mut numbers: Vec<u64> = (0..count)
        .map(|i| permuted(request.seed, "windows for terms", u128::from(i), n))
        .collect();
    numbers.sort_unstable();
    let fitted = TfIdf::fit(&texts(request.windows, &numbers)?, &request.terms)?;
    std::fs::create_dir_all(&place).map_err(ClusterError::io(&place))?;
    fitted.save(&place)?;
    watch.at(Phase::Terms, count, count);
    Ok(fitted)
}

/// How far the embedding of windows is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// Windows whose vectors are in the file.
    windows: u64,
    /// blake3 of these.
    hash: String,
    tokens: u64,
    macs: u64,
}

/// The vectors of all windows, on disk.
struct Embeddings {
    file: FileBuffer,
    width: usize,
    progress: Progress,
}

impl Vectors for Embeddings {
    fn len(&self) -> u64 {
        self.progress.windows
    }

    fn width(&self) -> usize {
        self.width
    }

    fn read(&self, number: u64, row: &mut [f32]) {
        let bytes = &self.file[number as usize * self.width * 4..][..self.width * 4];
        let (fours, _) = bytes.as_chunks::<4>();
        row.iter_mut()
            .zip(fours)
            .for_each(|(value, bytes)| *value = f32::from_le_bytes(*bytes));
    }
}

/// The vectors of the windows of one node.
struct OfNode<'a> {
    vectors: &'a Embeddings,
    members: &'a Members,
    node: u32,
}

impl Vectors for OfNode<'_> {
    fn len(&self) -> u64 {
        self.members.len(self.node)
    }

    fn width(&self) -> usize {
        self.vectors.width
    }

    fn read(&self, number: u64, row: &mut [f32]) {
        self.vectors.read(self.members.get(self.node, number), row);
    }
}

/// Writes the vectors of all windows, from where it was stopped; none if it is stopped again.
fn embed(
    folder: &ClusterFolder,
    windows: &Windows,
    encoder: &Encoder,
    watch: &mut dyn Watch,
) -> Result<Option<Embeddings>, ClusterError> {
    let (path, width) = (folder.file(EMBEDDINGS), encoder.width());
    let io = ClusterError::io(&path);
    let row_bytes = 4 * width as u64;
    let (mut progress, mut hasher) = resumed(folder, row_bytes, windows.len())?;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(&io)?;
    file.set_len(progress.windows * row_bytes).map_err(&io)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(&io)?;
    watch.at(Phase::Embed, progress.windows, windows.len());
    while progress.windows < windows.len() {
        if watch.is_stopped() {
            return Ok(None);
        }
        let numbers: Vec<u64> = (progress.windows..windows.len().min(progress.windows + BLOCK)).collect();
        let embedded = encoder.embed_counted(&texts(windows, &numbers)?)?;
        if let Some(at) = embedded.vectors.iter().position(|value| !value.is_finite()) {
            let window = numbers[at / width];
            let domain = windows.get(window)?.domain;
            return Err(ClusterError::NotFinite {
                window,
                domain: windows.corpus().facts().domains[domain].name.clone(),
            });
        }
        let bytes: Vec<u8> = embedded.vectors.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.write_all(&bytes).map_err(&io)?;
        hasher.update(&bytes);
        progress.windows += numbers.len() as u64;
        progress.tokens += embedded.tokens;
        progress.macs += embedded.macs;
        progress.hash = hasher.finalize().to_hex().to_string();
        save(folder, &file, &progress)?;
        watch.at(Phase::Embed, progress.windows, windows.len());
    }
    drop(file);
    Ok(Some(Embeddings {
        file: FileBuffer::open(&path).map_err(&io)?,
        width,
        progress,
    }))
}

fn save(folder: &ClusterFolder, vectors: &File, progress: &Progress) -> Result<(), ClusterError> {
    vectors
        .sync_data()
        .map_err(ClusterError::io(&folder.file(EMBEDDINGS)))?;
    let path = folder.file(PROGRESS);
    write_atomic(&path, |out| Ok(serde_json::to_writer(out, progress)?)).map_err(ClusterError::io(&path))
}

/// How far the vectors' file is whole, with the hash of that part so far.
fn resumed(folder: &ClusterFolder, row_bytes: u64, windows: u64) -> Result<(Progress, blake3::Hasher), ClusterError> {
    let path = folder.file(PROGRESS);
    let mut hasher = blake3::Hasher::new();
    if !path.is_file() {
        return Ok((Progress::default(), hasher));
    }
    let damaged = |reason: String| ClusterError::damaged(&path, reason);
    let content = std::fs::read(&path).map_err(ClusterError::io(&path))?;
    let progress: Progress = serde_json::from_slice(&content).map_err(|e| damaged(format!("no progress: {e}")))?;
    if progress.windows > windows {
        return Err(damaged(format!("{} of {windows} windows", progress.windows)));
    }
    let vectors = folder.file(EMBEDDINGS);
    let file = File::open(&vectors).map_err(ClusterError::io(&vectors))?;
    let mut whole = file.take(progress.windows * row_bytes);
    hasher.update_reader(&mut whole).map_err(ClusterError::io(&vectors))?;
    if hasher.finalize().to_hex().to_string() != progress.hash {
        let reason = format!("not the vectors that {PROGRESS} tells of: it was cut short or changed");
        return Err(ClusterError::damaged(&vectors, reason));
    }
    Ok((progress, hasher))
}

/// The node of each window at the level reached so far.
struct Found {
    nodes: Vec<u32>,
    /// Sum of the squared distances to their centroids.
    distances: f64,
    /// Windows whose vectors are zeros.
    blank: u64,
}

impl Found {
    fn new(windows: u64) -> Self {
        Self {
            nodes: vec![0; windows as usize],
            distances: 0.0,
            blank: 0,
        }
    }

    /// Assigns all windows to the nodes of `level`; whether it was not stopped.
    fn descend(&mut self, tree: &Tree, level: usize, vectors: &Embeddings, watch: &mut dyn Watch) -> bool {
        let (n, width) = (vectors.len(), vectors.width);
        (self.distances, self.blank) = (0.0, 0);
        let mut first = 0;
        while first < n {
            if watch.is_stopped() {
                return false;
            }
            let end = n.min(first + ASSIGN);
            let mut rows = vec![0.0; (end - first) as usize * width];
            rows.par_chunks_mut(width)
                .enumerate()
                .for_each(|(i, row)| vectors.read(first + i as u64, row));
            self.blank += rows
                .par_chunks(width)
                .filter(|row| row.iter().all(|x| *x == 0.0))
                .count() as u64;
            let own = &mut self.nodes[first as usize..end as usize];
            let found = tree.descend(level, own, &rows);
            for (node, (child, distance)) in own.iter_mut().zip(found) {
                *node = child;
                self.distances += f64::from(distance);
            }
            first = end;
            watch.at(Phase::Assign(level), first, n);
        }
        true
    }
}

/// Splits nodes level by level and assigns all windows; none if it is stopped.
fn grow(
    folder: &ClusterFolder,
    request: &Request<'_>,
    vectors: &Embeddings,
    watch: &mut dyn Watch,
) -> Result<Option<(Tree, Found)>, ClusterError> {
    let path = folder.file(CENTROIDS);
    let mut tree = if path.is_file() {
        Tree::read(&path, &request.branches, vectors.width)?
    } else {
        Tree {
            width: vectors.width,
            levels: Vec::new(),
        }
    };
    let mut found = Found::new(vectors.len());
    let mut nodes = 1;
    for (level, &branches) in request.branches.iter().enumerate() {
        if tree.levels.len() == level {
            let settings = request.settings(branches);
            let members = Members::of(&found.nodes, nodes);
            let split = |node: usize| -> Result<Vec<f32>, ClusterError> {
                let own = OfNode {
                    vectors,
                    members: &members,
                    node: node as u32,
                };
                if own.is_empty() {
                    return Ok(Vec::new());
                }
                Ok(fit(&own, branches, &settings, &format!("clusters {level} {node}"))?.centroids)
            };
            let mut grown = Level {
                branches,
                ..Level::default()
            };
            for first in (0..nodes).step_by(NODES) {
                watch.at(Phase::Split(level), first as u64, nodes as u64);
                if watch.is_stopped() {
                    return Ok(None);
                }
                let end = nodes.min(first + NODES);
                let each: Vec<Vec<f32>> = (first..end).into_par_iter().map(split).collect::<Result<_, _>>()?;
                for mut centroids in each {
                    grown.children.push((centroids.len() / vectors.width) as u32);
                    centroids.resize(branches * vectors.width, 0.0);
                    grown.centroids.append(&mut centroids);
                }
            }
            watch.at(Phase::Split(level), nodes as u64, nodes as u64);
            tree.levels.push(grown);
            tree.write(&path)?;
        }
        if !found.descend(&tree, level, vectors, watch) {
            return Ok(None);
        }
        nodes *= branches;
    }
    Ok(Some((tree, found)))
}

/// Writes assignments, their index and, last, what they are; then takes away what was only needed on the way.
fn finish(
    folder: &ClusterFolder,
    facts: Facts,
    windows: &Windows,
    found: &Found,
    keep_embeddings: bool,
) -> Result<Outcome, ClusterError> {
    let clusters = facts.clusters();
    let members = Members::of(&found.nodes, clusters);
    let write = |name: &str, numbers: &mut dyn Iterator<Item = u32>| {
        let path = folder.file(name);
        let written = write_atomic(&path, |out| {
            for number in numbers {
                out.write_all(&number.to_le_bytes())?;
            }
            Ok(())
        });
        written.map_err(ClusterError::io(&path))
    };
    write(ASSIGNMENTS, &mut found.nodes.iter().copied())?;
    write(BY_CLUSTER, &mut members.each())?;
    let assignments = folder.file(ASSIGNMENTS);
    let names = &windows.corpus().facts().domains;
    let domains = windows.domains().map(|(domain, range)| {
        let mut histogram = vec![0; clusters];
        let own = &found.nodes[range.start as usize..range.end as usize];
        own.iter().for_each(|&cluster| histogram[cluster as usize] += 1);
        DomainHistogram {
            name: names[domain].name.clone(),
            windows: range.end - range.start,
            histogram,
        }
    });
    let facts = Facts {
        assignments: content_hash(&assignments).map_err(ClusterError::io(&assignments))?,
        inertia: found.distances / windows.len() as f64,
        blank: found.blank,
        domains: domains.collect(),
        ..facts
    };
    let path = folder.file(FACTS);
    let text = serde_json::to_string(&facts).map_err(|e| ClusterError::damaged(&path, e.to_string()))?;
    write_atomic(&path, |out| writeln!(out, "{text}")).map_err(ClusterError::io(&path))?;
    tidy(folder, keep_embeddings)?;
    Ok(Outcome::Done(Box::new(facts)))
}

/// Takes away what was only needed on the way; last what was asked.
fn tidy(folder: &ClusterFolder, keep_embeddings: bool) -> Result<(), ClusterError> {
    if !keep_embeddings {
        folder.clear(EMBEDDINGS)?;
    }
    folder.clear(PROGRESS)?;
    folder.clear(REQUEST)
}
