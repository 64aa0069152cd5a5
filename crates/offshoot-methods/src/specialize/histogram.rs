//! Importance sampling by cluster histograms: weights, what they cost in repeats, and how far two histograms lie apart.
//!
//! With a cluster `c(x)` for each window and the assumption `P(x | c, D_spec) = P(x | c)`, training on the generic windows drawn by
//! `P(c | D_spec)` has the loss of the domain in expectation (arXiv 2402.01093 v2, section 3.2). The windows are resampled, never
//! weighted as well.

/// Why two histograms make no distribution to draw from.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HistogramError {
    /// They count the windows of different clusters.
    #[error("a histogram of {spec} clusters for the domain and one of {generic} for the generic corpus")]
    Sizes {
        /// Clusters of the domain's histogram.
        spec: usize,
        /// Clusters of the generic one.
        generic: usize,
    },
    /// A histogram counts nothing.
    #[error("the histogram of {0} counts no window")]
    Empty(&'static str),
    /// No cluster has windows of both.
    #[error("no cluster with text of the domain has a window of the generic corpus: there is nothing to draw")]
    Disjoint,
    /// A setting that cannot work.
    #[error("setting `{field}`: {reason}")]
    Setting {
        /// Its name.
        field: &'static str,
        /// Why it cannot work.
        reason: String,
    },
    /// The cap leaves fewer windows than are to be drawn.
    #[error(
        "{draws} windows are to be drawn, but the clusters of the domain have {windows} and none is to be drawn more than {cap} times"
    )]
    Capped {
        /// Windows to draw.
        draws: u64,
        /// Generic windows in clusters that may be drawn.
        windows: u64,
        /// The cap.
        cap: f64,
    },
}

impl HistogramError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Sizes { .. } => "assign both corpora by one clustering, at one level",
            Self::Empty(_) => "check the part that was assigned: it has no window",
            Self::Disjoint => "use fewer clusters, or smooth the histogram",
            Self::Setting { .. } => "change the setting",
            Self::Capped { .. } => "draw fewer windows, raise the cap, use fewer clusters, or smooth the histogram",
        }
        .into()
    }
}

/// Counts divided by their sum.
///
/// # Errors
/// [`HistogramError::Empty`] with `what` where the sum is 0.
pub fn shares(counts: &[u64], what: &'static str) -> Result<Vec<f64>, HistogramError> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return Err(HistogramError::Empty(what));
    }
    Ok(counts.iter().map(|&count| count as f64 / total as f64).collect())
}

/// Entropy in nats, `-sum p ln p`: `ln k` for k equal shares (section 9's table 10).
#[must_use]
pub fn entropy(shares: &[f64]) -> f64 {
    let terms = shares.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln());
    // Not minus zero for a single cluster.
    terms.sum::<f64>() + 0.0
}

/// The largest share (table 9).
#[must_use]
pub fn largest(shares: &[f64]) -> f64 {
    shares.iter().copied().fold(0.0, f64::max)
}

/// `w(c) = P_spec(c) / P_generic(c)` of each cluster (section 3.2); 0 where both are 0, infinite where only the generic one is.
#[must_use]
pub fn weights(spec: &[f64], generic: &[f64]) -> Vec<f64> {
    let weight = |(&s, &g): (&f64, &f64)| if s == 0.0 { 0.0 } else { s / g };
    spec.iter().zip(generic).map(weight).collect()
}

/// The share of a generic sample that would count as much if it were weighted instead of drawn anew, `1 / sum P_spec^2 / P_generic`:
/// 1 for equal histograms, towards 0 the further they lie apart.
#[must_use]
pub fn effective_share(spec: &[f64], generic: &[f64]) -> f64 {
    let terms = spec.iter().zip(generic).filter(|(s, _)| **s > 0.0);
    1.0 / terms.map(|(s, g)| s * s / g).sum::<f64>()
}

/// Kullback-Leibler divergence in nats, `sum P_spec ln(P_spec / P_generic)`.
#[must_use]
pub fn divergence(spec: &[f64], generic: &[f64]) -> f64 {
    let terms = spec.iter().zip(generic).filter(|(s, _)| **s > 0.0);
    terms.map(|(s, g)| s * (s / g).ln()).sum()
}

/// `(1 - epsilon) P_spec + epsilon P_generic`: no cluster of the generic corpus is left out.
///
/// # Errors
/// [`HistogramError::Setting`] where epsilon is not in 0..1, both included.
pub fn smoothed(spec: &[f64], generic: &[f64], epsilon: f64) -> Result<Vec<f64>, HistogramError> {
    if !(0.0..=1.0).contains(&epsilon) {
        return Err(HistogramError::Setting {
            field: "smoothing",
            reason: format!("{epsilon} is not in 0..1"),
        });
    }
    let mixed = |(s, g): (&f64, &f64)| (1.0 - epsilon) * s + epsilon * g;
    Ok(spec.iter().zip(generic).map(mixed).collect())
}

/// `r_c`: how often each window of a cluster is drawn among `draws`, `draws * P(c) / windows in c`; 0 for clusters that are not drawn.
#[must_use]
pub fn repeats(shares: &[f64], generic: &[u64], draws: u64) -> Vec<f64> {
    let of = |(&p, &count): (&f64, &u64)| if p == 0.0 { 0.0 } else { draws as f64 * p / count as f64 };
    shares.iter().zip(generic).map(of).collect()
}

/// How the domain's histogram becomes the distribution that is drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Resampling {
    /// Share of the generic histogram that is mixed in: 0 for the paper's plain counts.
    pub smoothing: f64,
    /// Most times that a window of a cluster is to be drawn, on average; none for no limit.
    pub repeat_cap: Option<f64>,
    /// Windows that the run draws: what repeats are counted for.
    pub draws: u64,
}

/// A distribution over clusters, with what is to be said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The probability of each cluster. Clusters without generic windows have 0.
    pub shares: Vec<f64>,
    /// `w(c)` of these.
    pub weights: Vec<f64>,
    /// `r_c` of these.
    pub repeats: Vec<f64>,
    /// The domain's share in clusters that have no generic window, which went to the others in proportion.
    pub unsupported: f64,
    /// Clusters that the cap took from.
    pub capped: usize,
    /// Effective share of the generic corpus.
    pub effective_share: f64,
    /// Divergence from the generic histogram in nats.
    pub divergence: f64,
}

impl Target {
    /// The distribution that gives generic windows the histogram `spec` (section 3.2): counts are divided by their sum, smoothed,
    /// taken from clusters that have no generic window, and capped, in this order. What is taken from a cluster goes to the others in
    /// proportion to their shares.
    ///
    /// # Errors
    /// Where histograms do not fit, are empty or have no cluster in common, or the cap leaves too little.
    pub fn new(spec: &[u64], generic: &[u64], resampling: &Resampling) -> Result<Self, HistogramError> {
        if spec.len() != generic.len() {
            return Err(HistogramError::Sizes {
                spec: spec.len(),
                generic: generic.len(),
            });
        }
        let base = shares(generic, "the generic corpus")?;
        let mut target = smoothed(&shares(spec, "the domain")?, &base, resampling.smoothing)?;
        let mut unsupported = 0.0;
        for (p, &count) in target.iter_mut().zip(generic) {
            if count == 0 {
                unsupported += *p;
                *p = 0.0;
            }
        }
        let kept: f64 = target.iter().sum();
        if kept <= 0.0 {
            return Err(HistogramError::Disjoint);
        }
        target.iter_mut().for_each(|p| *p /= kept);
        let capped = match resampling.repeat_cap {
            Some(cap) => capped(&mut target, generic, cap, resampling.draws)?,
            None => 0,
        };
        Ok(Self {
            weights: weights(&target, &base),
            repeats: repeats(&target, generic, resampling.draws),
            effective_share: effective_share(&target, &base),
            divergence: divergence(&target, &base),
            shares: target,
            unsupported,
            capped,
        })
    }

    /// `max_c r_c`.
    #[must_use]
    pub fn most_repeats(&self) -> f64 {
        self.repeats.iter().copied().fold(0.0, f64::max)
    }
}

/// Takes what is above the cap from `target` and gives it to the rest, until none is above; how many are at the cap.
fn capped(target: &mut [f64], generic: &[u64], cap: f64, draws: u64) -> Result<usize, HistogramError> {
    if !(cap > 0.0 && cap.is_finite()) || draws == 0 {
        return Err(HistogramError::Setting {
            field: "repeat_cap",
            reason: format!("{cap} for {draws} draws; both must be positive"),
        });
    }
    let limit = |count: u64| cap * count as f64 / draws as f64;
    let support = || target.iter().zip(generic).filter(|(p, _)| **p > 0.0);
    let windows: u64 = support().map(|(_, &count)| count).sum();
    if support().map(|(_, &count)| limit(count)).sum::<f64>() < 1.0 {
        return Err(HistogramError::Capped { draws, windows, cap });
    }
    let mut full = vec![false; target.len()];
    loop {
        // Each round fills one more cluster, or ends.
        let over: Vec<usize> = (0..target.len())
            .filter(|&c| !full[c] && target[c] > limit(generic[c]) * (1.0 + 1e-12))
            .collect();
        if over.is_empty() {
            return Ok(full.iter().filter(|full| **full).count());
        }
        for c in over {
            full[c] = true;
            target[c] = limit(generic[c]);
        }
        let taken: f64 = (0..target.len()).filter(|&c| full[c]).map(|c| target[c]).sum();
        let rest: f64 = (0..target.len()).filter(|&c| !full[c]).map(|c| target[c]).sum();
        if rest > 0.0 {
            let factor = ((1.0 - taken) / rest).max(0.0);
            (0..target.len())
                .filter(|&c| !full[c])
                .for_each(|c| target[c] *= factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 5e-7, "{found:?} {expected:?}");
        }
    }

    /// Numbers derived by hand: P_g = (.1, .3, .6) and P_s = (.5, 0, .5).
    #[test]
    fn weights_share_and_divergence_are_those_of_the_definition() {
        let (generic, spec) = ([0.1, 0.3, 0.6], [0.5, 0.0, 0.5]);
        let w = weights(&spec, &generic);
        close(&w, &[5.0, 0.0, 0.833_333_3]);
        close(&[generic.iter().zip(&w).map(|(g, w)| g * w).sum()], &[1.0]);
        close(&[effective_share(&spec, &generic)], &[0.342_857_1]);
        close(&[divergence(&spec, &generic)], &[0.713_558_2]);
        let target = Target::new(
            &[5, 0, 5],
            &[1, 3, 6],
            &Resampling {
                draws: 20,
                ..Resampling::default()
            },
        )
        .unwrap();
        close(&target.shares, &spec);
        close(&target.weights, &w);
        close(&target.repeats, &[10.0, 0.0, 20.0 / 12.0]);
        close(&[target.most_repeats(), target.unsupported], &[10.0, 0.0]);
    }

    #[test]
    fn equal_histograms_weigh_every_window_the_same() {
        let target = Target::new(
            &[2, 6, 12],
            &[1, 3, 6],
            &Resampling {
                draws: 10,
                ..Resampling::default()
            },
        )
        .unwrap();
        close(&target.weights, &[1.0; 3]);
        close(&target.repeats, &[1.0; 3]);
        close(&[target.effective_share, target.divergence], &[1.0, 0.0]);
    }

    #[test]
    fn entropy_of_k_equal_shares_is_ln_k() {
        for (k, nats) in [(16, 2.773), (64, 4.159), (256, 5.545), (1024, 6.931)] {
            let even = vec![1.0 / f64::from(k); k as usize];
            assert!((entropy(&even) - nats).abs() < 5e-4);
            assert_eq!(largest(&even), 1.0 / f64::from(k));
        }
        assert_eq!(entropy(&[0.0, 1.0]).to_bits(), 0.0f64.to_bits());
    }

    #[test]
    fn smoothing_mixes_the_generic_histogram_in() {
        let mixed = smoothed(&[0.5, 0.0, 0.5], &[0.1, 0.3, 0.6], 0.1).unwrap();
        close(&mixed, &[0.46, 0.03, 0.51]);
        let error = smoothed(&[1.0], &[1.0], 1.5).unwrap_err();
        assert!(error.to_string().contains("1.5 is not in 0..1"));
    }

    #[test]
    fn a_cap_takes_from_the_most_repeated_clusters_and_gives_to_the_rest() {
        let resampling = Resampling {
            smoothing: 0.1,
            repeat_cap: Some(2.0),
            draws: 10,
        };
        // Plain shares .46, .03, .51; at most 2 * 1 / 10 of the first, so .8 is left for .03 and .51.
        let target = Target::new(&[5, 0, 5], &[1, 3, 6], &resampling).unwrap();
        close(&target.shares, &[0.2, 0.8 * 0.03 / 0.54, 0.8 * 0.51 / 0.54]);
        assert_eq!(target.capped, 1);
        assert!(target.most_repeats() < 2.0 + 1e-9);
        // Without smoothing the two clusters of the domain have 7 windows: enough for 10 draws at 2, not at 1.
        let target = Target::new(
            &[5, 0, 5],
            &[1, 3, 6],
            &Resampling {
                smoothing: 0.0,
                ..resampling
            },
        )
        .unwrap();
        close(&target.shares, &[0.2, 0.0, 0.8]);
        let strict = Resampling {
            smoothing: 0.0,
            repeat_cap: Some(1.0),
            draws: 10,
        };
        let error = Target::new(&[5, 0, 5], &[1, 3, 6], &strict).unwrap_err();
        assert!(matches!(error, HistogramError::Capped { windows: 7, .. }), "{error}");
        assert!(error.hint().contains("raise the cap"));
    }

    #[test]
    fn what_has_no_generic_window_goes_to_the_others_or_is_refused() {
        let target = Target::new(&[1, 2, 1], &[4, 0, 4], &Resampling::default()).unwrap();
        close(&target.shares, &[0.5, 0.0, 0.5]);
        assert_eq!(target.unsupported, 0.5);
        assert_eq!(
            Target::new(&[0, 2, 0], &[4, 0, 4], &Resampling::default()),
            Err(HistogramError::Disjoint)
        );
        assert!(matches!(
            Target::new(&[0, 0], &[1, 1], &Resampling::default()),
            Err(HistogramError::Empty("the domain"))
        ));
        assert!(matches!(
            Target::new(&[1], &[1, 1], &Resampling::default()),
            Err(HistogramError::Sizes { .. })
        ));
    }
}
