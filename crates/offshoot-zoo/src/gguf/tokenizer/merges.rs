//! Merges and scores: what Hugging Face's BPE goes by, and what SentencePiece's and llama.cpp's `llama` go by.
//!
//! SentencePiece merges two neighbours if together they are a token, the token of the highest score first. So its merges are all
//! ways to put all tokens together from two, in the order of the tokens' scores.

use std::collections::{HashMap, HashSet};

use super::{TokenizerError, invalid, key};

/// Longest token in bytes that is taken apart; in longer ones nothing is merged.
const LONGEST: usize = 1024;

/// Most bytes of merges, as they would stand in a `tokenizer.json`. Llama 2's 61,249 have 0.9 MB there; 16 MiB are room for eight times its
/// vocabulary and more. Without a limit the thousand tokens `a`, `aa`, `aaa`, ... of half a megabyte make half a million merges of 358 MB.
const MOST_BYTES: usize = 16 << 20;
/// Bytes of `["",""],`, what is around the two parts of a merge there.
const AROUND: usize = 8;

/// All merges of tokens with scores: `tokens` have a text and, unless they are never merged, a score. Best score first; of equal ones
/// the token of the lower number; within one token the longest left part first, which is Hugging Face's own order.
///
/// # Errors
/// If they would have more than [`MOST_BYTES`].
pub(super) fn of_scores<'a>(tokens: &[(&'a str, Option<f32>)]) -> Result<Vec<(&'a str, &'a str)>, TokenizerError> {
    let merged = tokens.iter().filter(|(_, score)| score.is_some());
    let parts: HashSet<&str> = merged.map(|(text, _)| *text).collect();
    let mut order: Vec<(&str, f32)> = tokens
        .iter()
        .filter_map(|(text, score)| Some((*text, (*score)?)))
        .collect();
    // Stable: tokens of one score stay in the order of their numbers.
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut merges = Vec::new();
    let mut bytes = 0;
    for (text, _) in order.into_iter().filter(|(text, _)| text.len() <= LONGEST) {
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let known = cuts.filter(|(left, right)| parts.contains(left) && parts.contains(right));
        let at = merges.len();
        merges.extend(known);
        merges[at..].reverse();
        bytes += (merges.len() - at) * (text.len() + AROUND);
        if bytes > MOST_BYTES {
            return Err(invalid(format!(
                "its {} tokens are made of each other in so many ways that the merges have more than {} MiB, as those of no words do: \
                 `{}` is damaged, or the file is made to fill the memory",
                tokens.len(),
                MOST_BYTES >> 20,
                key::TOKENS
            )));
        }
    }
    Ok(merges)
}

/// Scores for `tokens` under which [`of_scores`] gives `merges` back, if there are any: 0 for what the first merge makes, -1 for the
/// next, and so on, then those that no merge makes. Tokens that are never merged, and have no text here, come last of all.
pub(super) fn scores(tokens: &[Option<&str>], merges: &[(&str, &str)]) -> Vec<f32> {
    let numbers: HashMap<&str, usize> = tokens
        .iter()
        .enumerate()
        .filter_map(|(i, text)| Some(((*text)?, i)))
        .collect();
    let mut places: Vec<Option<usize>> = vec![None; tokens.len()];
    let mut next = 0;
    let mut made = String::new();
    for (left, right) in merges {
        made.clear();
        made.push_str(left);
        made.push_str(right);
        if let Some(&number) = numbers.get(made.as_str())
            && places[number].is_none()
        {
            places[number] = Some(next);
            next += 1;
        }
    }
    for (place, text) in places.iter_mut().zip(tokens) {
        if place.is_none() && text.is_some() {
            *place = Some(next);
            next += 1;
        }
    }
    places
        .into_iter()
        .map(|place| -(place.unwrap_or(next) as f32))
        .collect()
}

/// Whether two lists of merges make the same tokens in the same order from the same parts, whatever the order of the parts of one.
pub(super) fn same(ours: &[(&str, &str)], theirs: &[(&str, &str)]) -> bool {
    fn groups<'a>(merges: &[(&'a str, &'a str)]) -> Vec<(String, Vec<&'a str>)> {
        let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
        for (left, right) in merges {
            let made = format!("{left}{right}");
            match groups.last_mut() {
                Some((last, parts)) if *last == made => parts.push(left),
                _ => groups.push((made, vec![left])),
            }
        }
        groups.iter_mut().for_each(|(_, parts)| parts.sort_unstable());
        groups
    }
    ours.len() == theirs.len() && groups(ours) == groups(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [&str; 8] = ["<s>", "a", "b", "ab", "abab", "aba", "ba", "c"];
    const MERGES: [(&str, &str); 7] = [
        ("a", "b"),
        ("b", "a"),
        ("ab", "a"),
        ("a", "ba"),
        ("aba", "b"),
        ("ab", "ab"),
        // `bab` is no token, so there is no ("a", "bab").
        ("c", "c"),
    ];

    #[test]
    fn scores_made_of_merges_give_the_merges_back() {
        let tokens: Vec<_> = TOKENS.iter().map(|&t| Some(t).filter(|t| *t != "<s>")).collect();
        let merges = &MERGES[..6];
        let scores = scores(&tokens, merges);
        assert_eq!(scores, [-7.0, -4.0, -5.0, 0.0, -3.0, -2.0, -1.0, -6.0]);
        let scored: Vec<_> = tokens
            .iter()
            .zip(&scores)
            .map(|(t, s)| (t.unwrap_or("<s>"), t.map(|_| *s)))
            .collect();
        assert_eq!(of_scores(&scored).unwrap(), merges);
    }

    #[test]
    fn merges_of_other_parts_or_in_another_order_of_tokens_are_others() {
        let merges = &MERGES[..6];
        let mut swapped = merges.to_vec();
        swapped.swap(2, 3);
        assert!(same(merges, &swapped), "two ways to one token");
        swapped.swap(1, 2);
        assert!(!same(merges, &swapped));
        assert!(!same(merges, &merges[..5]));
        assert!(!same(merges, &MERGES));
    }

    #[test]
    fn equal_scores_keep_the_order_of_the_tokens() {
        let tokens = [
            ("a", Some(0.0)),
            ("aa", Some(-1.0)),
            ("aaa", Some(-1.0)),
            ("b", None),
            ("ab", Some(5.0)),
        ];
        assert_eq!(of_scores(&tokens).unwrap(), [("a", "a"), ("aa", "a"), ("a", "aa")]);
    }

    #[test]
    fn merges_end_where_their_text_would_grow_without_measure() {
        // `a`, `aa`, ... of n letters: n (n - 1) / 2 merges, of (n^3 - n) / 3 bytes together.
        let letters = "a".repeat(1024);
        let merges = |n: usize| {
            let tokens: Vec<_> = (1..=n).map(|length| (&letters[..length], Some(0.0))).collect();
            of_scores(&tokens).map(|merges| merges.len())
        };
        let bytes = |n: usize| (n * n * n - n) / 3 + AROUND * n * (n - 1) / 2;
        assert_eq!((bytes(365), bytes(366)), (16_740_360, 16_876_870), "around 16 MiB");
        assert_eq!(merges(365), Ok(66_430));
        let text = merges(1024).unwrap_err().to_string();
        assert!(text.contains("its 1024 tokens") && text.contains("16 MiB"), "{text}");
        assert!(merges(366).is_err());
    }
}
