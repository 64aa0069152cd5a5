//! A tree of centroids: splits of splits for thousands of clusters, and the greedy descent through them.

use std::path::Path;

use offshoot_zoo::safetensors::{self, SafetensorsError, SafetensorsFile};

use super::error::ClusterError;
use super::kmeans::nearest;

/// Most clusters of a tree.
pub(super) const MAX_CLUSTERS: usize = 1 << 24;

/// One level: the children of every node above it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Level {
    /// Children of a node, at most.
    pub branches: usize,
    /// Children that each node has: fewer than `branches` where it had fewer vectors.
    pub children: Vec<u32>,
    /// `[nodes, branches, width]`, row-major; zeros in place of children that are not there.
    pub centroids: Vec<f32>,
}

/// Centroids level by level. Child `c` of node `n` is node `n * branches + c` of the next level; a leaf is a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// Numbers of a vector.
    pub width: usize,
    /// From the root on.
    pub levels: Vec<Level>,
}

impl Tree {
    /// Leaves, those that no vector was found for among them.
    #[must_use]
    pub fn clusters(&self) -> usize {
        self.levels.iter().map(|level| level.branches).product()
    }

    /// The nodes that `rows`, `[n, width]`, belong to one level below `nodes`, those that they belong to at `level`, and the squared
    /// distances to their centroids. `[n]` each.
    pub(super) fn descend(&self, level: usize, nodes: &[u32], rows: &[f32]) -> Vec<(u32, f32)> {
        let (width, level) = (self.width, &self.levels[level]);
        let centroids = |node: u32| {
            let first = node as usize * level.branches * width;
            &level.centroids[first..][..level.children[node as usize] as usize * width]
        };
        let child = |node: u32, found: (u32, f32)| (node * level.branches as u32 + found.0, found.1);
        if let Some(&node) = nodes.first()
            && nodes.iter().all(|other| *other == node)
        {
            let found = nearest(rows, centroids(node), width);
            return found.into_iter().map(|found| child(node, found)).collect();
        }
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        order.sort_by_key(|&i| nodes[i]);
        let mut all = vec![(0, 0.0); nodes.len()];
        let mut own = Vec::new();
        for group in order.chunk_by(|&a, &b| nodes[a] == nodes[b]) {
            let node = nodes[group[0]];
            own.clear();
            group
                .iter()
                .for_each(|&i| own.extend_from_slice(&rows[i * width..][..width]));
            for (&i, found) in group.iter().zip(nearest(&own, centroids(node), width)) {
                all[i] = child(node, found);
            }
        }
        all
    }

    /// The cluster of each of `rows`, `[n, width]`, by greedy descent to the nearest child, with the squared distance to its centroid.
    /// `[n]`.
    #[must_use]
    pub fn clusters_of(&self, rows: &[f32]) -> Vec<(u32, f32)> {
        let mut found = vec![(0, 0.0); rows.len() / self.width];
        for level in 0..self.levels.len() {
            let nodes: Vec<u32> = found.iter().map(|(node, _)| *node).collect();
            found = self.descend(level, &nodes, rows);
        }
        found
    }

    /// Writes it as safetensors, whole or not at all: of each level `levels.L.centroids`, `[nodes, branches, width]`, and
    /// `levels.L.children`, `[nodes]`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> Result<(), SafetensorsError> {
        let mut tensors = Vec::new();
        for (l, level) in self.levels.iter().enumerate() {
            let nodes = level.children.len();
            tensors.push((format!("levels.{l}.centroids"), vec![nodes, level.branches, self.width]));
            tensors.push((format!("levels.{l}.children"), vec![nodes]));
        }
        safetensors::write(path, &tensors, |i| {
            let level = &self.levels[i / 2];
            Ok::<_, SafetensorsError>(if i % 2 == 0 {
                level.centroids.clone()
            } else {
                level.children.iter().map(|&n| n as f32).collect()
            })
        })
    }

    /// Reads the first levels that `path` has of a tree of these branches.
    ///
    /// # Errors
    /// If sizes are not those of such a tree, or a centroid is not finite.
    pub(super) fn read(path: &Path, branches: &[usize], width: usize) -> Result<Self, ClusterError> {
        let damaged = |reason: String| ClusterError::damaged(path, reason);
        let file = SafetensorsFile::open(path)?;
        let mut levels = Vec::new();
        let mut nodes = 1;
        for (l, &branches) in branches.iter().enumerate() {
            let [centroids, children] = ["centroids", "children"].map(|leaf| format!("levels.{l}.{leaf}"));
            let Some(shape) = file.shape(&centroids) else {
                break;
            };
            if shape != [nodes, branches, width] || file.shape(&children) != Some(&[nodes]) {
                return Err(damaged(format!(
                    "`{centroids}` is {shape:?}, not [{nodes}, {branches}, {width}]"
                )));
            }
            let values = file.read(&centroids)?;
            if values.iter().any(|value| !value.is_finite()) {
                return Err(damaged(format!("`{centroids}` holds a number that is not finite")));
            }
            let counts = file.read(&children)?;
            if counts
                .iter()
                .any(|&n| n.fract() != 0.0 || !(0.0..=branches as f32).contains(&n))
            {
                return Err(damaged(format!("`{children}` holds what is no number of children")));
            }
            levels.push(Level {
                branches,
                children: counts.iter().map(|&n| n as u32).collect(),
                centroids: values,
            });
            nodes *= branches;
        }
        let tree = Self { width, levels };
        tree.check().map_err(damaged)?;
        Ok(tree)
    }

    /// Every node that can be reached has a child.
    fn check(&self) -> Result<(), String> {
        let mut reached = vec![true];
        for (l, level) in self.levels.iter().enumerate() {
            let mut next = vec![false; level.children.len() * level.branches];
            for (node, (&children, reached)) in level.children.iter().zip(&reached).enumerate() {
                if *reached && children == 0 {
                    return Err(format!("node {node} of level {l} has no child"));
                }
                next[node * level.branches..][..children as usize].fill(true);
            }
            reached = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two halves of a line, the second of which has one child only.
    fn tree() -> Tree {
        Tree {
            width: 1,
            levels: vec![
                Level {
                    branches: 2,
                    children: vec![2],
                    centroids: vec![0.0, 10.0],
                },
                Level {
                    branches: 2,
                    children: vec![2, 1],
                    centroids: vec![-1.0, 2.0, 10.0, 0.0],
                },
            ],
        }
    }

    #[test]
    fn descent_takes_the_nearest_child_of_the_nearest_child() {
        let found = tree().clusters_of(&[-3.0, 1.0, 4.0, 6.0, 100.0]);
        // 4 is nearer to 0 than to 10, and then to 2.
        assert_eq!(found, [(0, 4.0), (1, 1.0), (1, 4.0), (2, 16.0), (2, 8100.0)]);
        assert_eq!(tree().clusters(), 4);
    }

    #[test]
    fn a_tree_comes_back_from_its_file_and_another_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("centroids.safetensors");
        tree().write(&path).unwrap();
        assert_eq!(Tree::read(&path, &[2, 2], 1).unwrap(), tree());
        let error = Tree::read(&path, &[2, 3], 1).unwrap_err().to_string();
        assert!(error.contains("[2, 2, 1], not [2, 3, 1]"), "{error}");
        let mut broken = tree();
        broken.levels[1].children[1] = 0;
        broken.write(&path).unwrap();
        let error = Tree::read(&path, &[2, 2], 1).unwrap_err().to_string();
        assert!(error.contains("node 1 of level 1 has no child"), "{error}");
        broken = tree();
        broken.levels[0].centroids[0] = f32::NAN;
        broken.write(&path).unwrap();
        assert!(Tree::read(&path, &[2, 2], 1).is_err());
    }
}
