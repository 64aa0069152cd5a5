//! Windows of tokens that a model sees, and the order in which a run draws them.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::corpus::{Corpus, Part};
use crate::error::DataError;
use crate::rng::Rng;
use crate::split::Split;

/// Documents between two places where the number of windows before is kept: 8 bytes in memory for so many documents.
const STRIDE: u64 = 256;
/// Windows after which shares of domains are met exactly.
const CYCLE: usize = 4096;

/// How documents are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowOptions {
    /// Tokens of a window, at most: at least 2.
    pub context: usize,
    /// Whether the documents of a domain are joined and cut into windows of exactly `context` tokens.
    pub packing: bool,
    /// Whether each document begins with the begin-of-text token.
    pub begin_of_text: bool,
    /// Whether each document ends with the end-of-text token.
    pub end_of_text: bool,
}

impl WindowOptions {
    /// Windows of single documents, each of which ends with the end-of-text token if there is one, as GPT-2's do.
    #[must_use]
    pub fn new(context: usize, corpus: &Corpus) -> Self {
        Self {
            context,
            packing: false,
            begin_of_text: false,
            end_of_text: corpus.tokenizer().end_of_text().is_some(),
        }
    }
}

/// What a model sees at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Token ids, 2 to `context`; each but the first is the target of those before it.
    pub tokens: Vec<u32>,
    /// The domain's number in the corpus.
    pub domain: usize,
}

/// The windows of one split of a corpus, domain after domain, document after document.
///
/// A document is its tokens with those that begin and end a text. Its windows follow each other without overlap; the last
/// may be short, and is left out where it has one token. With packing all documents of a domain are joined first and
/// only the end of the last one may be left out. Windows are found by the index: memory grows by 8 bytes for 256 documents.
pub struct Windows {
    corpus: Arc<Corpus>,
    split: Split,
    context: u64,
    packing: bool,
    begin: Option<u32>,
    end: Option<u32>,
    domains: Vec<DomainWindows>,
    len: u64,
}

struct DomainWindows {
    domain: usize,
    /// The number of the first window.
    first: u64,
    count: u64,
    left_out: u64,
    /// Windows before document `STRIDE * i`; empty with packing.
    before: Vec<u64>,
}

impl Windows {
    /// The windows of all domains.
    ///
    /// # Errors
    /// [`DataError::Config`] where the context is below 2, packing lacks an end-of-text token, or a token that is asked
    /// for is not known.
    pub fn new(corpus: Arc<Corpus>, split: Split, options: WindowOptions) -> Result<Self, DataError> {
        let all: Vec<usize> = (0..corpus.facts().domains.len()).collect();
        Self::of_domains(corpus, split, &all, options)
    }

    /// The windows of some domains, by their numbers, in this order.
    ///
    /// # Errors
    /// As [`Windows::new`]; and where a number is beyond the domains or there twice.
    pub fn of_domains(
        corpus: Arc<Corpus>,
        split: Split,
        domains: &[usize],
        options: WindowOptions,
    ) -> Result<Self, DataError> {
        if options.context < 2 {
            let reason = format!(
                "{} tokens; a window needs one to see and one to predict",
                options.context
            );
            return Err(DataError::config("context", reason));
        }
        let token = |is_wanted: bool, field, known: Option<u32>| match (is_wanted, known) {
            (true, None) => Err(DataError::config(
                field,
                "the tokenizer has no such token; name it, or do without",
            )),
            (true, id) => Ok(id),
            (false, _) => Ok(None),
        };
        let begin = token(
            options.begin_of_text,
            "begin_of_text",
            corpus.tokenizer().begin_of_text(),
        )?;
        let end = token(options.end_of_text, "end_of_text", corpus.tokenizer().end_of_text())?;
        if options.packing && end.is_none() {
            let reason = "documents that are joined need an end-of-text token between them";
            return Err(DataError::config("packing", reason));
        }
        let mut windows = Self {
            split,
            context: options.context as u64,
            packing: options.packing,
            begin,
            end,
            domains: Vec::new(),
            len: 0,
            corpus,
        };
        for (at, &domain) in domains.iter().enumerate() {
            if domains[..at].contains(&domain) {
                return Err(DataError::config("domains", format!("domain {domain} is there twice")));
            }
            let Some(part) = windows.corpus.part(domain, split) else {
                let reason = format!("domain {domain} of {}", windows.corpus.facts().domains.len());
                return Err(DataError::config("domains", reason));
            };
            let counted = windows.count(domain, part)?;
            windows.len += counted.count;
            windows.domains.push(counted);
        }
        Ok(windows)
    }

    /// Tokens that are added to each document.
    fn added(&self) -> u64 {
        u64::from(self.begin.is_some()) + u64::from(self.end.is_some())
    }

    /// The windows of a document of so many tokens, and those left out.
    fn cut(&self, tokens: u64) -> (u64, u64) {
        let length = tokens + self.added();
        let rest = u64::from(length % self.context == 1);
        (length.div_ceil(self.context) - rest, rest)
    }

    fn count(&self, domain: usize, part: &Part) -> Result<DomainWindows, DataError> {
        let mut found = DomainWindows {
            domain,
            first: self.len,
            count: 0,
            left_out: 0,
            before: Vec::new(),
        };
        if self.packing {
            let length = part.documents().checked_mul(self.added());
            let length = length.and_then(|added| added.checked_add(part.tokens()));
            let length = length.ok_or_else(|| DataError::config("packing", "more tokens than can be counted"))?;
            found.count = length / self.context;
            found.left_out = u64::from(length % self.context != 0);
            return Ok(found);
        }
        for document in 0..part.documents() {
            if document % STRIDE == 0 {
                found.before.push(found.count);
            }
            let (count, rest) = self.cut(part.end(document) - part.start(document));
            found.count += count;
            found.left_out += rest;
        }
        Ok(found)
    }

    /// Windows of all domains.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no window.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens of a window, at most.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context as usize
    }

    /// How documents are cut.
    #[must_use]
    pub fn options(&self) -> WindowOptions {
        WindowOptions {
            context: self.context(),
            packing: self.packing,
            begin_of_text: self.begin.is_some(),
            end_of_text: self.end.is_some(),
        }
    }

    /// The split.
    #[must_use]
    pub fn split(&self) -> Split {
        self.split
    }

    /// The corpus.
    #[must_use]
    pub fn corpus(&self) -> &Arc<Corpus> {
        &self.corpus
    }

    /// Windows left out because they have one token, or with packing because they are not full.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.domains.iter().map(|domain| domain.left_out).sum()
    }

    /// The domains, by their numbers in the corpus, with the numbers of their windows.
    pub fn domains(&self) -> impl Iterator<Item = (usize, Range<u64>)> + '_ {
        self.domains
            .iter()
            .map(|domain| (domain.domain, domain.first..domain.first + domain.count))
    }

    /// One window.
    ///
    /// # Errors
    /// [`DataError::Damaged`] where a token is beyond the vocabulary, [`DataError::OutOfRange`] beyond the last window.
    pub fn get(&self, window: u64) -> Result<Window, DataError> {
        let after = self.domains.partition_point(|domain| domain.first <= window);
        // Domains without windows begin where the next one does: the last of them is the one that has it.
        let found = after.checked_sub(1).map(|at| &self.domains[at]);
        let found = found.filter(|domain| window - domain.first < domain.count);
        let part = found.and_then(|domain| self.corpus.part(domain.domain, self.split));
        let (Some(domain), Some(part)) = (found, part) else {
            return Err(DataError::OutOfRange {
                place: format!("windows of {}", self.corpus.folder().display()),
                index: usize::try_from(window).unwrap_or(usize::MAX),
                len: usize::try_from(self.len).unwrap_or(usize::MAX),
            });
        };
        let number = window - domain.first;
        let tokens = if self.packing {
            self.packed(part, number)?
        } else {
            self.single(part, domain, number)?
        };
        Ok(Window {
            tokens,
            domain: domain.domain,
        })
    }

    fn single(&self, part: &Part, domain: &DomainWindows, number: u64) -> Result<Vec<u32>, DataError> {
        let at = domain
            .before
            .partition_point(|&before| before <= number)
            .saturating_sub(1);
        let mut before = domain.before[at];
        let mut document = at as u64 * STRIDE;
        loop {
            let (count, _) = self.cut(part.end(document) - part.start(document));
            if number < before + count {
                break;
            }
            before += count;
            document += 1;
        }
        let mut tokens = Vec::with_capacity(self.context as usize);
        let first = (number - before) * self.context;
        self.read(part, document, first..first + self.context, &mut tokens)?;
        Ok(tokens)
    }

    fn packed(&self, part: &Part, number: u64) -> Result<Vec<u32>, DataError> {
        // The joined documents: where one begins follows from the index.
        let starts_at = |document: u64| part.start(document) + document * self.added();
        let first = number * self.context;
        let (mut low, mut high) = (0, part.documents());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if starts_at(middle) <= first {
                low = middle;
            } else {
                high = middle;
            }
        }
        let mut tokens = Vec::with_capacity(self.context as usize);
        let mut document = low;
        while (tokens.len() as u64) < self.context && document < part.documents() {
            let from = (first + tokens.len() as u64) - starts_at(document);
            let wanted = self.context - tokens.len() as u64;
            self.read(part, document, from..from + wanted, &mut tokens)?;
            document += 1;
        }
        Ok(tokens)
    }

    /// Adds a range of a document with its begin and end to `tokens`; what lies beyond its end is left out.
    fn read(&self, part: &Part, document: u64, range: Range<u64>, tokens: &mut Vec<u32>) -> Result<(), DataError> {
        let span = part.span(document);
        let length = span.end - span.start;
        let lead = u64::from(self.begin.is_some());
        if let Some(begin) = self.begin.filter(|_| range.start == 0 && range.end > 0) {
            tokens.push(begin);
        }
        let from = range.start.saturating_sub(lead).min(length);
        let to = range.end.saturating_sub(lead).min(length);
        part.read(span.start + from..span.start + to, tokens)?;
        if let Some(end) = self.end.filter(|_| range.contains(&(lead + length))) {
            tokens.push(end);
        }
        Ok(())
    }
}

/// How a run draws windows.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// Windows of a batch: at least 1.
    pub batch: usize,
    /// Decides the order.
    pub seed: u64,
    /// The share of windows from each domain of the [`Windows`], in their order; only their ratios count. Empty: each
    /// domain in proportion to its windows.
    pub weights: Vec<f64>,
}

/// The batches of a run. Batch s depends on the windows, the seed, the weights and s alone.
///
/// Without weights, batches go through one pass over all windows after the other, each in an order of its own; a batch may
/// hold the end of one and the start of the next. With weights, each domain goes through its own passes, and of every
/// 4,096 windows each domain gives its share, rounded, in an order drawn anew; a domain whose weight is not zero gives at
/// least one.
///
/// Orders are keyed permutations: nothing is kept of them, however many windows there are.
pub struct Batches {
    windows: Windows,
    draw: Draw,
    /// With weights, the windows that each domain gives in a cycle.
    quotas: Vec<usize>,
    recent: Mutex<Option<(u64, Arc<Vec<Slot>>)>>,
}

/// One place in a cycle: a domain, and how many places before belong to it.
#[derive(Debug, Clone, Copy)]
struct Slot {
    domain: usize,
    before: usize,
}

impl Batches {
    /// Batches of windows.
    ///
    /// # Errors
    /// [`DataError::Config`] where there is no window, the batch is empty, or weights do not fit the domains.
    pub fn new(windows: Windows, draw: Draw) -> Result<Self, DataError> {
        if windows.is_empty() {
            let reason = format!(
                "no window of 2 tokens or more is in the {} part; lower the shares held out, or the context",
                windows.split.name()
            );
            return Err(DataError::config("windows", reason));
        }
        if draw.batch == 0 {
            return Err(DataError::config("batch", "must be at least 1"));
        }
        let quotas = if draw.weights.is_empty() {
            Vec::new()
        } else {
            quotas(&draw.weights, &windows.domains)?
        };
        Ok(Self {
            windows,
            draw,
            quotas,
            recent: Mutex::new(None),
        })
    }

    /// The windows that batches are drawn from.
    #[must_use]
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// The numbers of the windows of batch `step`.
    #[must_use]
    pub fn numbers(&self, step: u64) -> Vec<u64> {
        let first = u128::from(step) * self.draw.batch as u128;
        (0..self.draw.batch as u128).map(|i| self.number(first + i)).collect()
    }

    /// Batch `step`.
    ///
    /// # Errors
    /// [`DataError::Damaged`] where a token is beyond the vocabulary.
    pub fn batch(&self, step: u64) -> Result<Vec<Window>, DataError> {
        self.numbers(step)
            .into_iter()
            .map(|number| self.windows.get(number))
            .collect()
    }

    /// The window at a place in the run.
    fn number(&self, place: u128) -> u64 {
        if self.quotas.is_empty() {
            return permuted(self.draw.seed, "windows", place, self.windows.len);
        }
        let (cycle, at) = ((place / CYCLE as u128) as u64, (place % CYCLE as u128) as usize);
        let slot = self.cycle(cycle)[at];
        let domain = &self.windows.domains[slot.domain];
        let place = u128::from(cycle) * self.quotas[slot.domain] as u128 + slot.before as u128;
        let purpose = format!("windows of domain {}", domain.domain);
        domain.first + permuted(self.draw.seed, &purpose, place, domain.count)
    }

    /// The domains of one cycle.
    fn cycle(&self, cycle: u64) -> Arc<Vec<Slot>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((own, slots)) = &*recent
            && *own == cycle
        {
            return Arc::clone(slots);
        }
        let given = self.quotas.iter().enumerate();
        let mut domains: Vec<usize> = given.flat_map(|(domain, &quota)| vec![domain; quota]).collect();
        Rng::for_example(self.draw.seed, "domains", cycle, 0).shuffle(&mut domains);
        let mut before = vec![0; self.quotas.len()];
        let slots = domains.into_iter().map(|domain| {
            before[domain] += 1;
            Slot {
                domain,
                before: before[domain] - 1,
            }
        });
        let slots = Arc::new(slots.collect());
        *recent = Some((cycle, Arc::clone(&slots)));
        slots
    }
}

/// How many windows of a cycle each domain gives.
fn quotas(weights: &[f64], domains: &[DomainWindows]) -> Result<Vec<usize>, DataError> {
    let wrong = |reason: String| DataError::config("weights", reason);
    if weights.len() != domains.len() {
        return Err(wrong(format!(
            "{} weights for {} domains",
            weights.len(),
            domains.len()
        )));
    }
    let total: f64 = weights.iter().sum();
    let is_wrong = |weight: &f64| !weight.is_finite() || *weight < 0.0;
    if weights.iter().any(is_wrong) || !(total > 0.0 && total.is_finite()) {
        return Err(wrong(
            "must be finite and not negative, and one must be positive".into(),
        ));
    }
    let positive = weights.iter().filter(|&&weight| weight > 0.0).count();
    if positive > CYCLE {
        return Err(wrong(format!("more than {CYCLE} domains")));
    }
    for (weight, domain) in weights.iter().zip(domains) {
        if *weight > 0.0 && domain.count == 0 {
            return Err(wrong(format!("domain {} has no window to draw", domain.domain)));
        }
    }
    // One place each, and the others by largest remainders.
    let shared = (CYCLE - positive) as f64;
    let exact: Vec<f64> = weights.iter().map(|weight| weight / total * CYCLE as f64).collect();
    let above: Vec<f64> = exact.iter().map(|own| (own - 1.0).max(0.0)).collect();
    let scale = shared / above.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let mut quotas: Vec<usize> = Vec::new();
    let mut remainders = Vec::new();
    for (number, (&weight, &own)) in weights.iter().zip(&above).enumerate() {
        let share = if scale.is_finite() { own * scale } else { 0.0 };
        quotas.push(usize::from(weight > 0.0) + share.floor() as usize);
        remainders.push((share - share.floor(), number));
    }
    remainders.retain(|(_, number)| weights[*number] > 0.0);
    remainders.sort_by(|(a, i), (b, j)| b.total_cmp(a).then_with(|| i.cmp(j)));
    let given: usize = quotas.iter().sum();
    for (_, number) in remainders.iter().cycle().take(CYCLE.saturating_sub(given)) {
        quotas[*number] += 1;
    }
    Ok(quotas)
}

/// The item at a place of endless passes over `len` items, each pass in an order of its own that seed and purpose decide. Nothing
/// is kept of the orders, however many items there are. `len` must not be zero.
#[must_use]
pub fn permuted(seed: u64, purpose: &str, place: u128, len: u64) -> u64 {
    let pass = (place / u128::from(len)) as u64;
    Permutation::new(seed, purpose, pass, len).at((place % u128::from(len)) as u64)
}

/// A keyed permutation of `0..len`: a Feistel network of eight rounds on the next larger power of four, walked until it
/// comes back below `len` (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
struct Permutation {
    keys: [u64; ROUNDS],
    half: u32,
    len: u64,
}

const ROUNDS: usize = 8;

impl Permutation {
    fn new(seed: u64, purpose: &str, pass: u64, len: u64) -> Self {
        let mut rng = Rng::for_example(seed, purpose, pass, 0);
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self {
            keys: std::array::from_fn(|_| rng.bits()),
            half: bits.div_ceil(2).max(2),
            len,
        }
    }

    fn at(&self, index: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let mut value = index;
        loop {
            let (mut left, mut right) = (value >> self.half, value & mask);
            for key in self.keys {
                let mut mixed = (right ^ key).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB);
                (left, right) = (right, left ^ ((mixed >> 32) & mask));
            }
            value = (left << self.half) | right;
            if value < self.len {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_meets_each_item_once() {
        for len in [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 255, 256, 257, 1000, 4097] {
            for pass in 0..3 {
                let permutation = Permutation::new(7, "test", pass, len);
                let mut seen: Vec<u64> = (0..len).map(|i| permutation.at(i)).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..len).collect::<Vec<_>>(), "{len}");
            }
        }
    }

    #[test]
    fn a_permutation_of_billions_is_computed_at_any_place() {
        let len = 5_000_000_000;
        let permutation = Permutation::new(7, "test", 0, len);
        let mut seen: Vec<u64> = (0..20_000).map(|i| permutation.at(i * 250_000)).collect();
        assert!(seen.iter().all(|&value| value < len));
        let mean = seen.iter().map(|&value| value as f64).sum::<f64>() / 20_000.0 / len as f64;
        // The mean of 20,000 uniform numbers has a deviation of 0.002.
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 20_000);
        assert!(Permutation::new(7, "test", 0, u64::MAX).at(u64::MAX - 1) < u64::MAX);
    }

    #[test]
    fn small_permutations_are_all_drawn_about_equally_often() {
        let mut counts = [0usize; 24];
        let draws = 24_000;
        for pass in 0..draws {
            let permutation = Permutation::new(3, "test", pass, 4);
            let order: Vec<u64> = (0..4).map(|i| permutation.at(i)).collect();
            let mut number = 0;
            for (i, own) in order.iter().enumerate() {
                number = number * (4 - i) + order[i + 1..].iter().filter(|other| *other < own).count();
            }
            counts[number] += 1;
        }
        // Five deviations of a binomial count of mean 1,000.
        assert!(counts.iter().all(|&count| (845..1155).contains(&count)), "{counts:?}");
    }

    #[test]
    fn places_of_a_cycle_are_shared_by_weight() {
        let domains = |count: usize| -> Vec<DomainWindows> {
            (0..count)
                .map(|domain| DomainWindows {
                    domain,
                    first: 0,
                    count: 9,
                    left_out: 0,
                    before: Vec::new(),
                })
                .collect()
        };
        assert_eq!(quotas(&[1.0, 1.0], &domains(2)).unwrap(), [2048, 2048]);
        assert_eq!(quotas(&[3.0, 1.0], &domains(2)).unwrap(), [3072, 1024]);
        assert_eq!(quotas(&[0.0, 5.0], &domains(2)).unwrap(), [0, 4096]);
        assert_eq!(quotas(&[1e-9, 1.0], &domains(2)).unwrap(), [1, 4095]);
        for weights in [vec![0.3, 0.7, 1e-6, 0.1], vec![1.0; 7], vec![1e300, 1e300, 1e-300]] {
            assert_eq!(
                quotas(&weights, &domains(weights.len())).unwrap().iter().sum::<usize>(),
                CYCLE
            );
        }
        for weights in [vec![], vec![1.0], vec![-1.0, 2.0], vec![0.0, 0.0], vec![f64::NAN, 1.0]] {
            assert!(quotas(&weights, &domains(2)).is_err(), "{weights:?}");
        }
    }
}
