//! Trains the pieces of a unigram language model: candidates from repeated substrings, expectation maximisation, pruning.
//!
//! T. Kudo, Subword Regularization (2018), with SentencePiece's numbers. Sums run over pieces of work that are cut by
//! sizes alone, so the result is the same for any number of threads.

use std::collections::BTreeSet;

use rayon::prelude::*;

/// Characters of the longest piece.
const MAX_PIECE: usize = 16;
/// The most candidates.
const MAX_SEEDS: usize = 1_000_000;
/// Bytes of distinct words that candidates are taken from, the most frequent first.
const MAX_SEED_BYTES: usize = 16 << 20;
/// What stays of the pieces each time that some are pruned.
const SHRINKING: f64 = 0.75;
/// Rounds of expectation maximisation between two prunings.
const ROUNDS: usize = 2;
/// Pieces expected less often than this go.
const LEAST_EXPECTED: f64 = 0.5;
/// How much less likely than the least likely piece an unknown character is, in nats.
const UNKNOWN_PENALTY: f64 = 10.0;
/// Parts that words are divided into for summing.
const SHARDS: usize = 16;
/// What stands for a character without a piece.
const UNKNOWN: u32 = u32::MAX;

/// A piece and its log-probability.
pub(super) type Piece = (String, f64);

/// At most `room` pieces with their log-probabilities, the most likely first; each of `characters` is one of them.
/// `words` must be sorted by their letters and consist of `characters`, which must be fewer than `room`.
pub(super) fn train(words: &[(String, u64)], characters: &BTreeSet<char>, room: usize) -> Vec<Piece> {
    let mut model = Model::new(seeds(words, characters));
    let wanted = room + room / 10;
    loop {
        for _ in 0..ROUNDS {
            let expected = model.expected(words);
            model = maximised(&model, &expected);
        }
        let before = model.pieces.len();
        if before <= wanted {
            break;
        }
        let kept = ((before as f64 * SHRINKING) as usize).max(wanted);
        model = Model::new(pruned(&model, words, kept));
        if model.pieces.len() == before {
            break;
        }
    }
    finished(model.pieces, characters, room)
}

/// Single characters, and the substrings that are repeated most, by occurrences times length. A substring that is always
/// followed by the same character is none, for the longer one is.
fn seeds(words: &[(String, u64)], characters: &BTreeSet<char>) -> Vec<Piece> {
    let mut chosen: Vec<usize> = (0..words.len()).collect();
    chosen.sort_by_key(|&word| std::cmp::Reverse(words[word].1));
    let mut bytes = 0;
    chosen.retain(|&word| {
        bytes += words[word].0.len();
        bytes <= MAX_SEED_BYTES
    });
    // Every place in a word where a substring may begin.
    let mut suffixes: Vec<(u32, u32)> = Vec::new();
    for word in chosen {
        let starts = words[word].0.char_indices();
        suffixes.extend(starts.map(|(at, _)| (word as u32, at as u32)));
    }
    let text = |&(word, at): &(u32, u32)| {
        let rest = &words[word as usize].0[at as usize..];
        rest.char_indices().nth(MAX_PIECE).map_or(rest, |(end, _)| &rest[..end])
    };
    suffixes.par_sort_unstable_by(|a, b| text(a).cmp(text(b)).then_with(|| a.cmp(b)));
    // Characters of each, and those shared with the one before.
    let facts: Vec<(u8, u8)> = (0..suffixes.len())
        .into_par_iter()
        .map(|i| {
            let own = text(&suffixes[i]);
            let before = i.checked_sub(1).map_or("", |before| text(&suffixes[before]));
            let shared = own.chars().zip(before.chars()).take_while(|(a, b)| a == b).count();
            (own.chars().count() as u8, shared as u8)
        })
        .collect();
    let mut found: Vec<(u64, &str)> = (2..=MAX_PIECE)
        .into_par_iter()
        .flat_map_iter(|length| {
            let mut found = Vec::new();
            let mut first = 0;
            while first < facts.len() {
                let mut last = first + 1;
                while last < facts.len() && usize::from(facts[last].1) >= length {
                    last += 1;
                }
                let group = first..last;
                first = last;
                if usize::from(facts[group.start].0) < length {
                    continue;
                }
                let is_one_longer = usize::from(facts[group.start].0) > length
                    && facts[group.start + 1..group.end]
                        .iter()
                        .all(|&(_, shared)| usize::from(shared) > length);
                if is_one_longer && length < MAX_PIECE {
                    continue;
                }
                let count: u64 = suffixes[group.clone()]
                    .iter()
                    .map(|&(word, _)| words[word as usize].1)
                    .sum();
                if count >= 2 {
                    let own = text(&suffixes[group.start]);
                    let end = own.char_indices().nth(length).map_or(own.len(), |(end, _)| end);
                    found.push((count * length as u64, &own[..end]));
                }
            }
            found
        })
        .collect();
    found.par_sort_unstable_by(|(m, a), (n, b)| n.cmp(m).then_with(|| a.cmp(b)));
    found.truncate(MAX_SEEDS);
    let mut counts: Vec<(char, u64)> = characters.iter().map(|&character| (character, 0)).collect();
    for (word, count) in words {
        for character in word.chars() {
            if let Ok(at) = counts.binary_search_by_key(&character, |own| own.0) {
                counts[at].1 += count;
            }
        }
    }
    let single = counts
        .into_iter()
        .map(|(character, count)| (character.to_string(), count.max(1) as f64));
    let mut pieces: Vec<Piece> = single
        .chain(found.into_iter().map(|(score, piece)| (piece.to_owned(), score as f64)))
        .collect();
    let total: f64 = pieces.iter().map(|(_, score)| score).sum();
    pieces.iter_mut().for_each(|(_, score)| *score = (*score / total).ln());
    pieces
}

/// Pieces, sorted by their letters, and how to find them at a place in a word.
struct Model {
    pieces: Vec<Piece>,
    nodes: Vec<Node>,
    /// The byte of each edge and the node that it leads to; those of a node are neighbours, in the order of bytes.
    edges: Vec<(u8, u32)>,
    unknown: f64,
}

struct Node {
    first: u32,
    count: u16,
    /// The piece that ends here.
    piece: u32,
}

/// One piece at one place of a word.
#[derive(Clone, Copy)]
struct Match {
    start: u32,
    end: u32,
    piece: u32,
    score: f64,
}

impl Model {
    fn new(mut pieces: Vec<Piece>) -> Self {
        pieces.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let least = pieces.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
        let mut model = Self {
            nodes: vec![Node::empty()],
            edges: Vec::new(),
            unknown: least - UNKNOWN_PENALTY,
            pieces,
        };
        // The pieces below each node, and how many of their bytes lead there.
        let mut ranges = vec![(0, model.pieces.len(), 0)];
        let mut node = 0;
        while let Some(&(mut low, high, depth)) = ranges.get(node) {
            if low < high && model.pieces[low].0.len() == depth {
                model.nodes[node].piece = low as u32;
                low += 1;
            }
            model.nodes[node].first = model.edges.len() as u32;
            while low < high {
                let byte = model.pieces[low].0.as_bytes()[depth];
                let below = model.pieces[low..high].partition_point(|(piece, _)| piece.as_bytes()[depth] <= byte);
                model.edges.push((byte, model.nodes.len() as u32));
                model.nodes[node].count += 1;
                model.nodes.push(Node::empty());
                ranges.push((low, low + below, depth + 1));
                low += below;
            }
            node += 1;
        }
        model
    }

    /// All pieces in a word, by where they start; a character without a piece of its own is an unknown one.
    fn matches(&self, word: &str, found: &mut Vec<Match>) {
        found.clear();
        let bytes = word.as_bytes();
        for (start, character) in word.char_indices() {
            let own_end = start + character.len_utf8();
            let mut is_known = false;
            let mut node = &self.nodes[0];
            for (at, &byte) in bytes.iter().enumerate().skip(start) {
                let edges = &self.edges[node.first as usize..node.first as usize + usize::from(node.count)];
                let Ok(edge) = edges.binary_search_by_key(&byte, |edge| edge.0) else {
                    break;
                };
                node = &self.nodes[edges[edge].1 as usize];
                if node.piece != UNKNOWN {
                    is_known |= at + 1 == own_end;
                    found.push(Match {
                        start: start as u32,
                        end: at as u32 + 1,
                        piece: node.piece,
                        score: self.pieces[node.piece as usize].1,
                    });
                }
            }
            if !is_known {
                found.push(Match {
                    start: start as u32,
                    end: own_end as u32,
                    piece: UNKNOWN,
                    score: self.unknown,
                });
            }
        }
    }

    /// Sums over all words, shard by shard: `add` adds what a word gives for its pieces.
    fn summed(&self, words: &[(String, u64)], add: impl Fn(&mut Scratch, &str, f64, &mut [f64]) + Sync) -> Vec<f64> {
        let shards: Vec<Vec<f64>> = words
            .par_chunks(words.len().div_ceil(SHARDS).max(1))
            .map(|words| {
                let mut sums = vec![0.0; self.pieces.len()];
                let mut scratch = Scratch::default();
                for (word, count) in words {
                    self.matches(word, &mut scratch.matches);
                    add(&mut scratch, word, *count as f64, &mut sums);
                }
                sums
            })
            .collect();
        let mut sums = vec![0.0; self.pieces.len()];
        for shard in shards {
            sums.iter_mut().zip(shard).for_each(|(sum, own)| *sum += own);
        }
        sums
    }

    /// How often each piece is expected over all ways of cutting the words.
    fn expected(&self, words: &[(String, u64)]) -> Vec<f64> {
        self.summed(words, |scratch, word, count, sums| {
            let Scratch { matches, ahead, behind } = scratch;
            // Log-probabilities of all ways to cut the word up to a place, and from a place on.
            reset(ahead, word.len(), 0);
            for own in matches.iter() {
                let path = ahead[own.start as usize] + own.score;
                ahead[own.end as usize] = log_add(ahead[own.end as usize], path);
            }
            reset(behind, word.len(), word.len());
            for own in matches.iter().rev() {
                let path = behind[own.end as usize] + own.score;
                behind[own.start as usize] = log_add(behind[own.start as usize], path);
            }
            let all = ahead[word.len()];
            for own in matches.iter().filter(|own| own.piece != UNKNOWN) {
                let path = ahead[own.start as usize] + own.score + behind[own.end as usize];
                sums[own.piece as usize] += count * (path - all).exp();
            }
        })
    }

    /// How often each piece stands in the most likely cut of the words.
    fn most_likely(&self, words: &[(String, u64)]) -> Vec<f64> {
        self.summed(words, |scratch, word, count, sums| {
            let Scratch { matches, ahead, .. } = scratch;
            best(matches, word.len(), ahead, |own| {
                if own.piece != UNKNOWN {
                    sums[own.piece as usize] += count;
                }
            });
        })
    }
}

impl Node {
    fn empty() -> Self {
        Self {
            first: 0,
            count: 0,
            piece: UNKNOWN,
        }
    }
}

/// What is needed for one word after the other.
#[derive(Default)]
struct Scratch {
    matches: Vec<Match>,
    ahead: Vec<f64>,
    behind: Vec<f64>,
}

fn reset(paths: &mut Vec<f64>, len: usize, start: usize) {
    paths.clear();
    paths.resize(len + 1, f64::NEG_INFINITY);
    paths[start] = 0.0;
}

/// `ln(exp(a) + exp(b))`.
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY {
        return high;
    }
    high + (low - high).exp().ln_1p()
}

/// Gives the matches of the most likely cut, from the last to the first, and its log-probability.
fn best(matches: &[Match], len: usize, paths: &mut Vec<f64>, mut give: impl FnMut(&Match)) -> f64 {
    reset(paths, len, 0);
    let mut last: Vec<Option<usize>> = vec![None; len + 1];
    for (number, own) in matches.iter().enumerate() {
        let path = paths[own.start as usize] + own.score;
        if path > paths[own.end as usize] {
            paths[own.end as usize] = path;
            last[own.end as usize] = Some(number);
        }
    }
    let mut at = len;
    while let Some(number) = last[at] {
        give(&matches[number]);
        at = matches[number].start as usize;
    }
    paths[len]
}

/// New probabilities, with a prior that favours few pieces (Liang and Klein, Structured Bayesian Nonparametric Models
/// with Variational Inference, 2007).
fn maximised(model: &Model, expected: &[f64]) -> Model {
    let kept = model.pieces.iter().zip(expected);
    let mut kept: Vec<Piece> = kept
        .filter(|(_, expected)| **expected >= LEAST_EXPECTED)
        .map(|((piece, _), expected)| (piece.clone(), *expected))
        .collect();
    let total = digamma(kept.iter().map(|(_, expected)| expected).sum());
    kept.iter_mut().for_each(|(_, score)| *score = digamma(*score) - total);
    Model::new(kept)
}

/// The derivative of the logarithm of the gamma function, for positive numbers: recurrence up to 7, then the asymptotic
/// series (Abramowitz and Stegun 6.3.5 and 6.3.18).
fn digamma(mut x: f64) -> f64 {
    let mut result = 0.0;
    while x < 7.0 {
        result -= 1.0 / x;
        x += 1.0;
    }
    let square = 1.0 / (x * x);
    result + x.ln() - 0.5 / x - square * (1.0 / 12.0 - square * (1.0 / 120.0 - square * (1.0 / 252.0 - square / 240.0)))
}

/// The pieces without which the words would become least likely: all single characters, and others until there are
/// `wanted`.
fn pruned(model: &Model, words: &[(String, u64)], wanted: usize) -> Vec<Piece> {
    let counts = model.most_likely(words);
    let total: f64 = counts.iter().sum();
    // What the words lose where a piece is replaced by the best cut of itself; none where it must stay.
    let losses: Vec<Option<f64>> = model
        .pieces
        .par_iter()
        .enumerate()
        .map_init(Scratch::default, |scratch, (number, (piece, score))| {
            // A single character stays.
            piece.chars().nth(1)?;
            let count = counts[number];
            model.matches(piece, &mut scratch.matches);
            scratch.matches.retain(|own| own.piece != number as u32);
            let mut parts = Vec::new();
            let other = best(&scratch.matches, piece.len(), &mut scratch.ahead, |own| {
                parts.push(own.piece);
            });
            if count == 0.0 || other >= *score {
                return Some(0.0);
            }
            if parts.contains(&UNKNOWN) {
                return None;
            }
            // Its occurrences go to the parts.
            let with_parts = (total + count * (parts.len() as f64 - 1.0)).ln();
            let replaced: f64 = parts
                .iter()
                .map(|&part| (counts[part as usize] + count).ln() - with_parts)
                .sum();
            Some(count * (count.ln() - total.ln() - replaced))
        })
        .collect();
    let stay = losses.iter().filter(|loss| loss.is_none()).count();
    let mut others: Vec<(f64, usize)> = losses
        .iter()
        .enumerate()
        .filter_map(|(number, loss)| loss.filter(|loss| *loss != 0.0).map(|loss| (loss, number)))
        .collect();
    others.sort_unstable_by(|(a, i), (b, j)| b.total_cmp(a).then_with(|| i.cmp(j)));
    others.truncate(wanted.saturating_sub(stay));
    let must = (0..losses.len()).filter(|&number| losses[number].is_none());
    let numbers: BTreeSet<usize> = must.chain(others.into_iter().map(|(_, number)| number)).collect();
    numbers.into_iter().map(|number| model.pieces[number].clone()).collect()
}

/// All characters, those that were lost with the least probability, and the most likely other pieces.
fn finished(mut pieces: Vec<Piece>, characters: &BTreeSet<char>, room: usize) -> Vec<Piece> {
    let by_score = |(a, m): &Piece, (b, n): &Piece| n.total_cmp(m).then_with(|| a.cmp(b));
    pieces.sort_unstable_by(by_score);
    let least = pieces.last().map_or(0.0, |(_, score)| *score);
    let is_single = |(piece, _): &Piece| piece.chars().nth(1).is_none();
    let (mut kept, mut others): (Vec<Piece>, Vec<Piece>) = pieces.into_iter().partition(is_single);
    let found: BTreeSet<String> = kept.iter().map(|(piece, _)| piece.clone()).collect();
    let lost = characters
        .iter()
        .map(char::to_string)
        .filter(|own| !found.contains(own));
    kept.extend(lost.map(|piece| (piece, least)));
    others.truncate(room.saturating_sub(kept.len()));
    kept.extend(others);
    kept.sort_unstable_by(by_score);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All ways to cut a word into pieces, with their probabilities.
    fn cuts(word: &str, pieces: &[Piece]) -> Vec<(Vec<usize>, f64)> {
        if word.is_empty() {
            return vec![(Vec::new(), 1.0)];
        }
        let mut all = Vec::new();
        for (number, (piece, score)) in pieces.iter().enumerate() {
            if let Some(rest) = word.strip_prefix(piece.as_str()) {
                for (mut own, probability) in cuts(rest, pieces) {
                    own.push(number);
                    all.push((own, probability * score.exp()));
                }
            }
        }
        all
    }

    fn pieces() -> Vec<Piece> {
        let of = |(piece, probability): &(&str, f64)| ((*piece).to_owned(), probability.ln());
        let given = [
            ("a", 0.1),
            ("b", 0.15),
            ("é", 0.05),
            ("ab", 0.2),
            ("abé", 0.1),
            ("bé", 0.2),
            ("ba", 0.2),
        ];
        given.iter().map(of).collect()
    }

    #[test]
    fn expectations_are_those_over_all_cuts() {
        let model = Model::new(pieces());
        let words = [("abéab", 3), ("babaé", 2), ("é", 1)].map(|(word, count)| (word.to_owned(), count));
        let found = model.expected(&words);
        let mut expected = vec![0.0; model.pieces.len()];
        let mut likely = vec![0.0; model.pieces.len()];
        for (word, count) in &words {
            let cuts = cuts(word, &model.pieces);
            let total: f64 = cuts.iter().map(|(_, probability)| probability).sum();
            for (cut, probability) in &cuts {
                cut.iter()
                    .for_each(|&piece| expected[piece] += *count as f64 * probability / total);
            }
            let best = cuts.iter().max_by(|(_, m), (_, n)| m.total_cmp(n)).unwrap();
            best.0.iter().for_each(|&piece| likely[piece] += *count as f64);
        }
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-12, "{found:?} {expected:?}");
        }
        assert_eq!(model.most_likely(&words), likely);
    }

    #[test]
    fn candidates_are_the_repeated_substrings_that_no_longer_one_stands_for() {
        let words = [("abcd", 3), ("xabc", 2), ("zq", 1)].map(|(word, count)| (word.to_owned(), count));
        let characters: BTreeSet<char> = "abcdxzq".chars().collect();
        let found = seeds(&words, &characters);
        let total: f64 =
            5.0 + 5.0 + 5.0 + 3.0 + 2.0 + 1.0 + 1.0 + [12.0, 15.0, 10.0, 9.0, 6.0, 8.0].iter().sum::<f64>();
        let of = |piece: &str| {
            found
                .iter()
                .find(|own| own.0 == piece)
                .map(|own| (own.1.exp() * total).round())
        };
        let expected = [
            ("abcd", 12.0),
            ("abc", 15.0),
            ("bc", 10.0),
            ("bcd", 9.0),
            ("cd", 6.0),
            ("xabc", 8.0),
        ];
        for (piece, score) in expected {
            assert_eq!(of(piece), Some(score), "{piece}");
        }
        // `ab` is always followed by `c`, `zq` is there once.
        assert_eq!(
            (of("ab"), of("zq"), of("a"), of("d")),
            (None, None, Some(5.0), Some(3.0))
        );
        assert_eq!(found.len(), 7 + 6);
    }

    #[test]
    fn digamma_has_the_values_of_tables() {
        // Abramowitz and Stegun, table 6.1, and -gamma.
        for (x, value) in [
            (1.0, -0.577_215_664_901_532_9),
            (1.5, 0.036_489_973_978_576_52),
            (2.0, 0.422_784_335_098_467_1),
            (100.0, 4.600_161_852_738_087),
        ] {
            assert!((digamma(x) - value).abs() < 1e-9, "{x}: {}", digamma(x));
        }
    }

    #[test]
    fn frequent_words_become_pieces_and_all_characters_stay() {
        let mut words: Vec<(String, u64)> = (0..200u64).map(|i| (format!("w{i}"), 1 + i % 3)).collect();
        words.extend([("often".to_owned(), 500), ("▁,".to_owned(), 900), ("ʒ".to_owned(), 1)]);
        words.sort();
        let characters: BTreeSet<char> = words.iter().flat_map(|(word, _)| word.chars()).collect();
        let pieces = train(&words, &characters, 40);
        assert!(pieces.len() <= 40);
        for piece in ["often", "▁,", "ʒ", "w", "7"] {
            assert!(pieces.iter().any(|own| own.0 == piece), "{piece}");
        }
        assert!(pieces.is_sorted_by(|a, b| a.1 >= b.1));
        assert!(pieces.iter().all(|(_, score)| score.is_finite()));
    }
}
