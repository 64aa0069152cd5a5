//! Windows drawn in two stages: a cluster by a histogram, then the next window of that cluster in an order of its own.

use std::sync::{Arc, Mutex, PoisonError};

use offshoot_data::Rng;
use offshoot_data::text::permuted;

use super::cluster::Members;
use super::histogram::HistogramError;

/// Windows after which shares of clusters are met to within one window.
const CYCLE: usize = 4096;

/// The windows of a run, drawn so that their clusters have a given histogram (arXiv 2402.01093 v2, section 3.2; the two stages are
/// CRISP's). Batch s depends on the clusters, the histogram, the seed and s alone.
///
/// First a cluster: of every 4,096 windows each cluster gives its share, rounded up or down by chance, so that its expected number is
/// exact (systematic sampling), in an order drawn anew. A cluster of share zero gives none. Then a window of it: each cluster is
/// gone through in passes, each in an order of its own, so that none of its windows comes a second time before all came once.
pub struct ClusterDraw {
    members: Arc<Members>,
    /// Clusters of positive share, with the sum of shares up to and including each.
    clusters: Vec<(u32, f64)>,
    seed: u64,
    batch: usize,
    recent: Mutex<Option<Cycle>>,
}

/// One cycle of a run.
#[derive(Clone)]
struct Cycle {
    number: u64,
    /// Windows that each of the clusters gave before.
    before: Vec<u64>,
    /// For each place: which of the clusters, and how many windows it gave before in this cycle.
    slots: Arc<Vec<(usize, u64)>>,
}

impl ClusterDraw {
    /// Draws `batch` windows at a time from `members` by `shares`, the probability of each cluster.
    ///
    /// # Errors
    /// Where there is not a share for each cluster, one is negative or not finite, all are zero, a cluster of positive share has no
    /// window, or the batch is empty.
    pub fn new(members: Arc<Members>, shares: &[f64], batch: usize, seed: u64) -> Result<Self, HistogramError> {
        let setting = |field, reason: String| HistogramError::Setting { field, reason };
        if batch == 0 {
            return Err(setting("batch", "must be at least 1".into()));
        }
        if shares.len() != members.clusters() {
            return Err(HistogramError::Sizes {
                spec: shares.len(),
                generic: members.clusters(),
            });
        }
        let total: f64 = shares.iter().sum();
        if shares.iter().any(|p| !(p.is_finite() && *p >= 0.0)) || !(total > 0.0 && total.is_finite()) {
            return Err(setting(
                "shares",
                "must be finite and not negative, and one must be positive".into(),
            ));
        }
        let mut clusters = Vec::new();
        let mut sum = 0.0;
        for (cluster, &share) in shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
            if members.len(cluster as u32) == 0 {
                let reason = format!("cluster {cluster} has the share {share} and no window");
                return Err(setting("shares", reason));
            }
            sum += share / total;
            clusters.push((cluster as u32, sum));
        }
        // Sums of shares may end short of 1.
        if let Some(last) = clusters.last_mut() {
            last.1 = 1.0;
        }
        Ok(Self {
            members,
            clusters,
            seed,
            batch,
            recent: Mutex::new(None),
        })
    }

    /// The numbers of the windows of batch `step`.
    #[must_use]
    pub fn numbers(&self, step: u64) -> Vec<u64> {
        let first = u128::from(step) * self.batch as u128;
        (0..self.batch as u128).map(|i| self.number(first + i)).collect()
    }

    /// The window at a place in the run.
    fn number(&self, place: u128) -> u64 {
        let cycle = self.cycle((place / CYCLE as u128) as u64);
        let (at, before) = cycle.slots[(place % CYCLE as u128) as usize];
        let cluster = self.clusters[at].0;
        let given = u128::from(cycle.before[at]) + u128::from(before);
        let purpose = format!("windows of cluster {cluster}");
        let member = permuted(self.seed, &purpose, given, self.members.len(cluster));
        self.members.get(cluster, member)
    }

    /// How many windows each cluster gives in a cycle: the points `(i + u) / 4096` that fall into its part of 0..1.
    fn quotas(&self, cycle: u64) -> Vec<u64> {
        let offset = Rng::for_example(self.seed, "shares of clusters", cycle, 0).unit();
        let mut given = 0;
        let quota = |&(_, sum): &(u32, f64)| {
            let points = (sum * CYCLE as f64 - offset).ceil().clamp(0.0, CYCLE as f64) as u64;
            let own = points.saturating_sub(given);
            given = given.max(points);
            own
        };
        self.clusters.iter().map(quota).collect()
    }

    /// The cycle of this number. Cycles before it are counted from the one that was asked for last, or from the first.
    fn cycle(&self, number: u64) -> Cycle {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cycle) = recent.as_ref().filter(|cycle| cycle.number == number) {
            return cycle.clone();
        }
        let start = recent.take().filter(|cycle| cycle.number < number);
        let (mut before, first) = match start {
            Some(cycle) => (cycle.before, cycle.number),
            None => (vec![0; self.clusters.len()], 0),
        };
        for passed in first..number {
            before
                .iter_mut()
                .zip(self.quotas(passed))
                .for_each(|(sum, quota)| *sum += quota);
        }
        let quotas = self.quotas(number);
        let each = quotas.iter().enumerate();
        let mut slots: Vec<(usize, u64)> = each.flat_map(|(at, &quota)| vec![(at, 0); quota as usize]).collect();
        Rng::for_example(self.seed, "clusters", number, 0).shuffle(&mut slots);
        let mut given = vec![0; self.clusters.len()];
        for (at, order) in &mut slots {
            *order = given[*at];
            given[*at] += 1;
        }
        let cycle = Cycle {
            number,
            before,
            slots: Arc::new(slots),
        };
        *recent = Some(cycle.clone());
        cycle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 windows: 10 of cluster 0, 30 of cluster 1, 60 of cluster 2.
    fn members() -> Arc<Members> {
        let assignments: Vec<u32> = (0..100)
            .map(|w| {
                if w % 10 == 0 {
                    0
                } else if w % 10 < 4 {
                    1
                } else {
                    2
                }
            })
            .collect();
        Arc::new(Members::of(&assignments, 3))
    }

    #[test]
    fn draws_have_the_histogram_and_are_uniform_within_a_cluster() {
        let draw = ClusterDraw::new(members(), &[0.5, 0.0, 0.5], 1000, 7).unwrap();
        let mut counts = [0u32; 100];
        for step in 0..1000 {
            draw.numbers(step)
                .into_iter()
                .for_each(|window| counts[window as usize] += 1);
        }
        let members = members();
        let of = |cluster: u32| {
            (0..members.len(cluster))
                .map(move |i| members_get(cluster, i))
                .collect::<Vec<_>>()
        };
        let sum = |cluster: u32| of(cluster).iter().map(|&w| counts[w as usize]).sum::<u32>();
        // 4 sigma of 10^6 draws.
        assert!(sum(0).abs_diff(500_000) < 2000, "{}", sum(0));
        assert_eq!(sum(1), 0);
        assert_eq!(sum(0) + sum(2), 1_000_000);
        for cluster in [0, 2] {
            let own: Vec<u32> = of(cluster).iter().map(|&w| counts[w as usize]).collect();
            let (least, most) = (own.iter().min().unwrap(), own.iter().max().unwrap());
            assert!(
                most - least <= 1,
                "cluster {cluster} is cycled through: {least} to {most}"
            );
        }
    }

    fn members_get(cluster: u32, member: u64) -> u64 {
        members().get(cluster, member)
    }

    #[test]
    fn any_step_is_drawn_as_a_straight_run_draws_it() {
        let straight = ClusterDraw::new(members(), &[0.2, 0.3, 0.5], 600, 3).unwrap();
        let all: Vec<Vec<u64>> = (0..40).map(|step| straight.numbers(step)).collect();
        for step in [39, 0, 17, 18, 6] {
            let fresh = ClusterDraw::new(members(), &[0.2, 0.3, 0.5], 600, 3).unwrap();
            assert_eq!(fresh.numbers(step), all[step as usize]);
            assert_eq!(straight.numbers(step), all[step as usize]);
        }
        let other = ClusterDraw::new(members(), &[0.2, 0.3, 0.5], 600, 4).unwrap();
        assert_ne!(other.numbers(0), all[0]);
    }

    #[test]
    fn small_shares_are_met_in_the_long_run() {
        let shares = [1e-5, 0.3, 1.0 - 0.3 - 1e-5];
        let draw = ClusterDraw::new(members(), &shares, 4096, 1).unwrap();
        let drawn = (0..500).flat_map(|step| draw.numbers(step));
        let rare = drawn.filter(|window| window % 10 == 0).count();
        // 20.5 expected of 2,048,000; each cycle gives one with probability .041.
        assert!((5..40).contains(&rare), "{rare}");
    }

    #[test]
    fn one_cluster_gives_its_own_windows_alone() {
        let draw = ClusterDraw::new(members(), &[0.0, 1.0, 0.0], 30, 0).unwrap();
        let mut first = draw.numbers(0);
        first.sort_unstable();
        let own: Vec<u64> = (0..30).map(|i| members_get(1, i)).collect();
        assert_eq!(first, own);
    }

    #[test]
    fn shares_that_cannot_be_drawn_are_refused() {
        let empty = Arc::new(Members::of(&[0, 0], 2));
        let refused = |members: Arc<Members>, shares: &[f64], batch| match ClusterDraw::new(members, shares, batch, 0) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        assert!(refused(empty, &[0.5, 0.5], 1).contains("cluster 1 has the share 0.5 and no window"));
        assert!(refused(members(), &[1.0, 0.0], 1).contains("2 clusters"));
        assert!(refused(members(), &[f64::NAN, 0.0, 1.0], 1).contains("finite"));
        assert!(refused(members(), &[0.0, 0.0, 0.0], 1).contains("positive"));
        assert!(refused(members(), &[1.0, 0.0, 0.0], 0).contains("batch"));
    }
}
