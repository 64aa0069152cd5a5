//! The yardstick of text: how well a decoder predicts documents, per token and per byte, by a sliding window.

use std::collections::VecDeque;

use offshoot_zoo::decoder::Tokens;
use offshoot_zoo::tensor::kernels::next_token_cross_entropy;
use offshoot_zoo::tensor::{Tensor, gather_rows};
use offshoot_zoo::{DecoderNetwork, Network, Weights};

use crate::error::EvalError;
use crate::features::read;

/// Rows of one forward pass, but for a longer window, which runs alone.
const ROWS: usize = 2048;
/// Logits that are in memory at once: 64 MiB, but for a row of more.
const LOGITS: usize = 1 << 24;

/// How a document that is longer than the context is scored.
///
/// Windows of `context` tokens begin at token 0, `stride`, `2 stride`, ... of the document, until one reaches its end. A window is read on
/// its own, from position 0. The first predicts all of its tokens but its first; each later one reads the `context - stride` tokens that it
/// shares with the one before again, as context, and predicts the others. So every token of a document but its first is predicted
/// exactly once: from all tokens before it where these are fewer than `context`, and otherwise from at least `context - stride` and at
/// most `context - 1` of them. It is the loop of Hugging Face's page on the perplexity of fixed-length models, with a stride below the
/// context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sliding {
    /// Tokens of a window, the last of which is only predicted.
    pub context: usize,
    /// Tokens from the beginning of a window to that of the next; `context - 1` shares one token, the least there can be.
    pub stride: usize,
}

impl Sliding {
    /// Windows of `context` tokens for a network that sees `most`, as far apart as can be unless `stride` says otherwise.
    ///
    /// # Errors
    /// If the context is below 2 or above `most`, or the stride leaves a token out.
    pub fn new(context: usize, stride: Option<usize>, most: usize) -> Result<Self, EvalError> {
        if context < 2 {
            let reason = "a window needs one token to see and one to predict: at least 2";
            return Err(EvalError::setting("context", context, reason));
        }
        if context > most {
            let reason = format!("the model sees {most} tokens at most");
            return Err(EvalError::setting("context", context, reason));
        }
        let stride = stride.unwrap_or(context - 1);
        if stride == 0 || stride >= context {
            let reason = format!(
                "must lie between 1 and {}, below the context of {context}: the first token of a window is only read, so windows share \
                 one at least",
                context - 1
            );
            return Err(EvalError::setting("stride", stride, reason));
        }
        Ok(Self { context, stride })
    }

    /// Begin and end of each window of a sequence of `tokens` tokens, and the first token that it predicts.
    pub fn windows(self, tokens: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut next = (tokens >= 2).then_some((0, 1));
        std::iter::from_fn(move || {
            let (begin, predicted) = next?;
            let end = tokens.min(begin + self.context);
            next = (end < tokens).then_some((begin + self.stride, end));
            Some((begin, end, predicted))
        })
    }
}

/// What was scored of one domain.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    /// Sum of the negative log-likelihoods of the predicted tokens, in nats.
    pub nats: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// UTF-8 bytes of the documents, their first tokens' among them.
    pub bytes: u64,
    /// Documents that were scored.
    pub documents: u64,
    /// Documents of fewer than two tokens, which hold nothing to predict; their bytes are not counted.
    pub left_out: u64,
}

impl Perplexity {
    /// `exp(nats / tokens)`.
    #[must_use]
    pub fn per_token(&self) -> f64 {
        (self.nats / self.tokens as f64).exp()
    }

    /// `exp(nats / bytes)`, which compares models of different tokenizers: lm-evaluation-harness' `byte_perplexity`.
    #[must_use]
    pub fn per_byte(&self) -> f64 {
        (self.nats / self.bytes as f64).exp()
    }

    /// `nats / bytes / ln 2`.
    #[must_use]
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / self.bytes as f64 / std::f64::consts::LN_2
    }
}

/// Means over domains, each of which counts as much as any other: perplexities by geometric means, which is the exponential of the mean
/// of the domains' mean losses (specialize.md 2.4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Means {
    /// Geometric mean of the domains' perplexities per token.
    pub per_token: f64,
    /// Geometric mean of the domains' perplexities per byte.
    pub per_byte: f64,
    /// Mean of the domains' bits per byte.
    pub bits_per_byte: f64,
}

impl Means {
    /// The means over `domains`; none of none.
    pub fn of<'p>(domains: impl IntoIterator<Item = &'p Perplexity>) -> Option<Self> {
        let (mut tokens, mut bytes, mut count) = (0.0, 0.0, 0.0);
        for domain in domains {
            tokens += domain.nats / domain.tokens as f64;
            bytes += domain.nats / domain.bytes as f64;
            count += 1.0;
        }
        (count > 0.0).then(|| Self {
            per_token: (tokens / count).exp(),
            per_byte: (bytes / count).exp(),
            bits_per_byte: bytes / count / std::f64::consts::LN_2,
        })
    }
}

/// A window that waits for others to run with.
struct Waiting {
    tokens: Vec<u32>,
    /// The first token that is predicted.
    predicted: usize,
    document: u64,
}

/// Scores the documents of one domain as they come, in bounded memory.
///
/// Windows of several documents run together, without padding, in passes of about 2,048 tokens; logits of some rows at a time. Each
/// token's loss is computed in fp32, as the network is, and summed in f64.
pub struct TextScorer<'a> {
    network: &'a DecoderNetwork,
    weights: Weights,
    sliding: Sliding,
    begin: Option<u32>,
    /// Logits that are in memory at once.
    logits: usize,
    waiting: VecDeque<Waiting>,
    /// Rows of all that wait.
    rows: usize,
    seen: u64,
    sums: Perplexity,
}

impl<'a> TextScorer<'a> {
    /// A scorer with nothing scored. `begin` is put before each document, which is then predicted from its first token on.
    ///
    /// # Errors
    /// If the weights are not the network's, the context is not one for it, or it has no token `begin`.
    pub fn new(
        network: &'a DecoderNetwork,
        weights: &Weights,
        sliding: Sliding,
        begin: Option<u32>,
    ) -> Result<Self, EvalError> {
        if let Some(reason) = weights.mismatch(&network.specs()) {
            return Err(EvalError::Weights(reason));
        }
        let decoder = network.decoder();
        let sliding = Sliding::new(sliding.context, Some(sliding.stride), decoder.context)?;
        if let Some(token) = begin.filter(|&token| token as usize >= decoder.vocabulary) {
            return Err(EvalError::Token {
                document: 0,
                token,
                vocabulary: decoder.vocabulary,
            });
        }
        Ok(Self {
            network,
            weights: weights.untracked(),
            sliding,
            begin,
            logits: LOGITS,
            waiting: VecDeque::new(),
            rows: 0,
            seen: 0,
            sums: Perplexity::default(),
        })
    }

    /// Adds a document of `tokens`, which are those of `bytes` UTF-8 bytes.
    ///
    /// # Errors
    /// If a token lies beyond the vocabulary, a loss is not finite, or the device fails.
    pub fn add(&mut self, tokens: &[u32], bytes: u64) -> Result<(), EvalError> {
        let document = self.seen;
        self.seen += 1;
        let vocabulary = self.network.decoder().vocabulary;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(EvalError::Token {
                document,
                token,
                vocabulary,
            });
        }
        let lead = usize::from(self.begin.is_some());
        if lead + tokens.len() < 2 {
            self.sums.left_out += 1;
            return Ok(());
        }
        self.sums.documents += 1;
        self.sums.bytes += bytes;
        for (begin, end, predicted) in self.sliding.windows(lead + tokens.len()) {
            let own = &tokens[begin.saturating_sub(lead)..end - lead];
            let lead = self.begin.filter(|_| begin == 0);
            self.rows += end - begin - 1;
            self.waiting.push_back(Waiting {
                tokens: lead.into_iter().chain(own.iter().copied()).collect(),
                predicted: predicted - begin,
                document,
            });
            while self.rows >= ROWS {
                self.run()?;
            }
        }
        Ok(())
    }

    /// Documents that were added, and their tokens that were predicted so far.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.seen, self.sums.tokens)
    }

    /// The sums over all documents.
    ///
    /// # Errors
    /// If nothing was predicted, a loss is not finite, or the device fails.
    pub fn finish(mut self) -> Result<Perplexity, EvalError> {
        while !self.waiting.is_empty() {
            self.run()?;
        }
        if self.sums.tokens == 0 || self.sums.bytes == 0 {
            return Err(EvalError::TooFew {
                what: "documents of two tokens or more",
                found: 0,
                needed: 1,
            });
        }
        // Of a model that predicts nothing the loss is finite, and its exponential may not be.
        if self.sums.per_token().is_infinite() {
            return Err(EvalError::Loss { document: 0 });
        }
        Ok(self.sums)
    }

    /// Runs waiting windows, as many as one pass has room for.
    fn run(&mut self) -> Result<(), EvalError> {
        let (mut rows, mut count) = (0, 0);
        for window in &self.waiting {
            let own = window.tokens.len() - 1;
            if count > 0 && rows + own > ROWS {
                break;
            }
            rows += own;
            count += 1;
        }
        let mut windows: Vec<Waiting> = self.waiting.drain(..count).collect();
        self.rows -= rows;
        // Of equal length one after the other: they are one group to the network.
        windows.sort_by_key(|window| std::cmp::Reverse(window.tokens.len()));
        // The last token of a window is only predicted.
        let inputs: Vec<&[u32]> = windows.iter().map(|w| &w.tokens[..w.tokens.len() - 1]).collect();
        let residual = self.network.residual(&self.weights, &Tokens::new(&inputs));
        let mut predicted = Vec::new();
        let mut first = 0;
        for window in &windows {
            for at in window.predicted..window.tokens.len() {
                predicted.push(((first + at - 1) as u32, window.tokens[at], window.document));
            }
            first += window.tokens.len() - 1;
        }
        let vocabulary = self.network.decoder().vocabulary;
        for part in predicted.chunks((self.logits / vocabulary).max(1)) {
            let losses = read(self.losses(&residual, part))?;
            for (loss, (_, _, document)) in losses.iter().zip(part) {
                if !loss.is_finite() {
                    return Err(EvalError::Loss { document: *document });
                }
                self.sums.nats += f64::from(*loss);
            }
            self.sums.tokens += part.len() as u64;
        }
        Ok(())
    }

    /// Losses of some rows of the residual stream, each with the token behind it.
    fn losses(&self, residual: &Tensor<2>, rows: &[(u32, u32, u64)]) -> Tensor<1> {
        let numbers: Vec<Option<u32>> = rows.iter().map(|(row, ..)| Some(*row)).collect();
        let targets: Vec<Option<u32>> = rows.iter().map(|(_, target, _)| Some(*target)).collect();
        let x = gather_rows(residual.clone(), numbers);
        next_token_cross_entropy(self.network.head(&self.weights, x), targets)
    }
}

#[cfg(test)]
mod tests {
    use offshoot_family::{Decoder, DecoderKind, RopeScaling};
    use offshoot_zoo::tensor::device;

    use super::*;

    fn network(kind: DecoderKind) -> DecoderNetwork {
        let decoder = Decoder {
            kind,
            width: 16,
            depth: 2,
            heads: 2,
            kv_heads: if kind == DecoderKind::Llama { 1 } else { 2 },
            head_dim: 8,
            hidden: 24,
            vocabulary: 61,
            context: 12,
            norm_eps: 1e-5,
            tied: true,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
        };
        decoder.check().unwrap();
        DecoderNetwork::new(decoder)
    }

    /// Weights large enough that predictions differ.
    fn weights(network: &DecoderNetwork) -> Weights {
        let device = device("cpu").unwrap();
        let weights = offshoot_zoo::initialise(&network.specs(), 3, &device);
        weights.map(|w| {
            let values = w.values().into_iter().map(|v| 8.0 * v).collect();
            offshoot_zoo::Weight::from_values(values, w.shape().to_vec(), &device)
        })
    }

    fn document(n: usize, seed: usize) -> Vec<u32> {
        (0..n).map(|i| ((i * 37 + seed * 11 + i * i) % 61) as u32).collect()
    }

    /// The loss of `target` behind `seen`, by the network alone on these tokens, in f64 from its logits.
    fn loss(network: &DecoderNetwork, weights: &Weights, seen: &[u32], target: u32) -> f64 {
        let logits = read(network.logits(weights, &Tokens::new(&[seen]))).unwrap();
        let row: Vec<f64> = logits[(seen.len() - 1) * 61..].iter().map(|&x| f64::from(x)).collect();
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        most + row.iter().map(|x| (x - most).exp()).sum::<f64>().ln() - row[target as usize]
    }

    /// The sum over a sequence with what each token is predicted from written out by hand: `seen(at)` is where its context begins.
    fn by_hand(network: &DecoderNetwork, weights: &Weights, text: &[u32], from: impl Fn(usize) -> usize) -> f64 {
        let one = |at: usize| loss(network, weights, &text[from(at)..at], text[at]);
        (1..text.len()).map(one).sum()
    }

    #[test]
    fn windows_predict_every_token_but_the_first_once() {
        for context in 2..7 {
            for stride in 1..context {
                let sliding = Sliding::new(context, Some(stride), 100).unwrap();
                for tokens in 0..25 {
                    let mut predicted = 1;
                    for (number, (begin, end, first)) in sliding.windows(tokens).enumerate() {
                        assert_eq!((begin, first), (number * stride, predicted));
                        assert!(end <= begin + context && first > begin && first < end);
                        assert!(number == 0 || first - begin == context - stride);
                        predicted = end;
                    }
                    assert_eq!(predicted, tokens.max(1), "{context} {stride} {tokens}");
                }
            }
        }
    }

    #[test]
    fn documents_are_scored_as_by_hand_whatever_the_stride() {
        for kind in [DecoderKind::Gpt2, DecoderKind::Llama] {
            let network = network(kind);
            let weights = weights(&network);
            let texts = [
                document(31, 1),
                document(5, 2),
                document(2, 3),
                document(12, 4),
                document(13, 5),
            ];
            for (context, stride) in [(12, 11), (12, 1), (12, 5), (7, 6), (7, 3), (2, 1)] {
                let sliding = Sliding::new(context, Some(stride), 12).unwrap();
                // A window begins where the last before the token does that has it among its new ones.
                let from = |at: usize| match at < context {
                    true => 0,
                    false => ((at - context) / stride + 1) * stride,
                };
                let mut scorer = TextScorer::new(&network, &weights, sliding, None).unwrap();
                let mut expected = 0.0;
                for (number, text) in texts.iter().enumerate() {
                    scorer.add(text, 100 + number as u64).unwrap();
                    expected += by_hand(&network, &weights, text, from);
                }
                let found = scorer.finish().unwrap();
                let tokens: usize = texts.iter().map(|text| text.len() - 1).sum();
                assert_eq!((found.tokens, found.bytes, found.documents), (tokens as u64, 510, 5));
                assert!(
                    (found.nats - expected).abs() < 1e-5 * expected,
                    "{kind:?} {context} {stride}: {found:?} {expected}"
                );
            }
        }
    }

    #[test]
    fn a_begin_of_text_token_is_read_and_the_first_token_predicted() {
        let network = network(DecoderKind::Llama);
        let weights = weights(&network);
        let sliding = Sliding::new(6, None, 12).unwrap();
        let mut scorer = TextScorer::new(&network, &weights, sliding, Some(60)).unwrap();
        let text = document(15, 6);
        scorer.add(&text, 40).unwrap();
        scorer.add(&[7], 1).unwrap();
        scorer.add(&[], 9).unwrap();
        let found = scorer.finish().unwrap();
        let with: Vec<u32> = std::iter::once(60).chain(text).collect();
        let expected = by_hand(&network, &weights, &with, |at| (at - 1) / 5 * 5) + loss(&network, &weights, &[60], 7);
        assert!((found.nats - expected).abs() < 1e-5 * expected, "{found:?} {expected}");
        assert_eq!(
            (found.tokens, found.bytes, found.documents, found.left_out),
            (16, 41, 2, 1)
        );
    }

    #[test]
    fn many_windows_and_blocks_of_logits_give_the_sum_of_each_alone() {
        let network = network(DecoderKind::Llama);
        let weights = weights(&network);
        let sliding = Sliding::new(12, Some(4), 12).unwrap();
        let mut together = TextScorer::new(&network, &weights, sliding, None).unwrap();
        together.logits = 7 * 61;
        let mut expected = (0.0, 0);
        for number in 0..40 {
            let text = document(1 + number * 17 % 400, number);
            together.add(&text, 1).unwrap();
            let mut alone = TextScorer::new(&network, &weights, sliding, None).unwrap();
            alone.add(&text, 1).unwrap();
            if let Ok(alone) = alone.finish() {
                expected = (expected.0 + alone.nats, expected.1 + alone.tokens);
            }
        }
        assert!(expected.1 > 3 * ROWS as u64);
        let found = together.finish().unwrap();
        assert_eq!(found.tokens, expected.1);
        assert!((found.nats - expected.0).abs() < 1e-6 * expected.0);
    }

    #[test]
    fn perplexities_and_their_means_by_hand() {
        let one = Perplexity {
            nats: 10.0 * 8f64.ln(),
            tokens: 10,
            bytes: 30,
            documents: 1,
            left_out: 0,
        };
        assert!((one.per_token() - 8.0).abs() < 1e-12);
        assert!((one.per_byte() - 2.0).abs() < 1e-12);
        assert!((one.bits_per_byte() - 1.0).abs() < 1e-12);
        let other = Perplexity {
            nats: 2f64.ln(),
            tokens: 1,
            bytes: 1,
            ..one
        };
        let means = Means::of([&one, &other]).unwrap();
        assert!((means.per_token - 4.0).abs() < 1e-12);
        assert!((means.per_byte - 2.0).abs() < 1e-12);
        assert!((means.bits_per_byte - 1.0).abs() < 1e-12);
        assert_eq!(Means::of([]), None);
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let network = network(DecoderKind::Gpt2);
        let weights = weights(&network);
        for (context, stride, name) in [
            (1, None, "context"),
            (0, None, "context"),
            (13, None, "context"),
            (6, Some(6), "stride"),
            (6, Some(0), "stride"),
        ] {
            let error = Sliding::new(context, stride, 12).unwrap_err();
            assert!(
                matches!(error, EvalError::Setting { name: found, .. } if found == name),
                "{error}"
            );
        }
        let sliding = Sliding::new(12, None, 12).unwrap();
        let scorer = || TextScorer::new(&network, &weights, sliding, None).unwrap();
        let mut with = scorer();
        with.add(&[1, 2], 2).unwrap();
        let error = with.add(&[1, 61], 2).unwrap_err();
        assert_eq!(
            error.to_string(),
            "document 1 has token 61, beyond the model's vocabulary of 61"
        );
        assert!(error.hint().unwrap().contains("tokenizer"));
        let mut empty = scorer();
        empty.add(&[5], 1).unwrap();
        assert!(matches!(empty.finish(), Err(EvalError::TooFew { .. })));
        let begin = TextScorer::new(&network, &weights, sliding, Some(61));
        assert!(matches!(begin.err(), Some(EvalError::Token { token: 61, .. })));
        assert!(matches!(
            TextScorer::new(&network, &Weights::new(), sliding, None).err(),
            Some(EvalError::Weights(_))
        ));
        let nan = weights.map(|w| {
            let device = device("cpu").unwrap();
            offshoot_zoo::Weight::from_values(vec![f32::NAN; w.values().len()], w.shape().to_vec(), &device)
        });
        let mut broken = TextScorer::new(&network, &nan, sliding, None).unwrap();
        broken.add(&[1, 2, 3], 3).unwrap();
        assert!(matches!(broken.finish(), Err(EvalError::Loss { document: 0 })));
    }
}
