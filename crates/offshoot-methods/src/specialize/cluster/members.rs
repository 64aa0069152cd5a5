//! The windows of each cluster: the inverted index from clusters to windows.

use std::ops::Range;

use filebuffer::FileBuffer;

/// The windows of each cluster, in the order of their numbers.
pub struct Members {
    /// Where the windows of each cluster begin, and the end of the last.
    starts: Vec<u64>,
    windows: Stored,
}

enum Stored {
    Memory(Vec<u32>),
    Mapped(FileBuffer),
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members")
            .field("clusters", &self.clusters())
            .finish_non_exhaustive()
    }
}

impl Members {
    /// The index of the cluster of each window, all below `clusters`; in memory, 4 bytes a window.
    ///
    /// # Panics
    /// If one is not.
    #[must_use]
    pub fn of(assignments: &[u32], clusters: usize) -> Self {
        let mut starts = vec![0u64; clusters + 1];
        assignments
            .iter()
            .for_each(|&cluster| starts[cluster as usize + 1] += 1);
        for cluster in 0..clusters {
            starts[cluster + 1] += starts[cluster];
        }
        let mut places = starts.clone();
        let mut windows = vec![0; assignments.len()];
        for (window, &cluster) in assignments.iter().enumerate() {
            let place = &mut places[cluster as usize];
            windows[*place as usize] = window as u32;
            *place += 1;
        }
        Self {
            starts,
            windows: Stored::Memory(windows),
        }
    }

    /// An index that lies on disk, 4 bytes a window, little-endian; `histogram` has the number of windows of each cluster.
    pub(super) fn mapped(histogram: &[u64], windows: FileBuffer) -> Self {
        let mut starts = vec![0];
        let mut sum = 0;
        for count in histogram {
            sum += count;
            starts.push(sum);
        }
        Self {
            starts,
            windows: Stored::Mapped(windows),
        }
    }

    /// Clusters.
    #[must_use]
    pub fn clusters(&self) -> usize {
        self.starts.len() - 1
    }

    /// Windows of a cluster; none beyond the last cluster.
    #[must_use]
    pub fn len(&self, cluster: u32) -> u64 {
        let range = self.range(cluster);
        range.end - range.start
    }

    /// Whether a cluster has no window.
    #[must_use]
    pub fn is_empty(&self, cluster: u32) -> bool {
        self.len(cluster) == 0
    }

    /// The number of a window of a cluster.
    ///
    /// # Panics
    /// If the cluster has no such member.
    #[must_use]
    pub fn get(&self, cluster: u32, member: u64) -> u64 {
        let range = self.range(cluster);
        assert!(member < range.end - range.start, "member {member} of cluster {cluster}");
        let at = (range.start + member) as usize;
        match &self.windows {
            Stored::Memory(windows) => u64::from(windows[at]),
            Stored::Mapped(bytes) => {
                let four = bytes[4 * at..].first_chunk().expect("the size was checked");
                u64::from(u32::from_le_bytes(*four))
            }
        }
    }

    fn range(&self, cluster: u32) -> Range<u64> {
        let cluster = cluster as usize;
        if cluster >= self.clusters() {
            return 0..0;
        }
        self.starts[cluster]..self.starts[cluster + 1]
    }

    /// All of them, cluster by cluster.
    pub(super) fn each(&self) -> impl Iterator<Item = u32> + '_ {
        let range = move |cluster| (0..self.len(cluster)).map(move |member| self.get(cluster, member) as u32);
        (0..self.clusters() as u32).flat_map(range)
    }
}
