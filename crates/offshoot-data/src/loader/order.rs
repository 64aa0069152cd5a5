//! Which example stands where: each epoch's order, and the items of each step.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::rng::Rng;

/// Orders that are kept because other threads still work on steps of theirs.
const KEPT: usize = 4;

/// One place in a batch: an example, and the pass over the data that it is met in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) pass: u64,
    pub(crate) index: usize,
}

/// The order of all examples of all epochs.
pub(crate) struct Order {
    seed: u64,
    batch: usize,
    train: Vec<usize>,
    recent: Mutex<VecDeque<(u64, Arc<Vec<usize>>)>>,
}

impl Order {
    /// `train` must not be empty, nor `batch` zero.
    pub(crate) fn new(seed: u64, batch: usize, train: Vec<usize>) -> Self {
        Self {
            seed,
            batch,
            train,
            recent: Mutex::new(VecDeque::new()),
        }
    }

    pub(crate) fn train(&self) -> &[usize] {
        &self.train
    }

    /// Whole batches in one pass; 1 where there are fewer examples than a batch holds.
    pub(crate) fn steps_per_epoch(&self) -> u64 {
        ((self.train.len() / self.batch) as u64).max(1)
    }

    /// The examples of a global step.
    pub(crate) fn items(&self, step: u64) -> Vec<Item> {
        let (len, batch) = (self.train.len() as u128, self.batch as u128);
        let (mut pass, mut at) = if len >= batch {
            let steps = self.steps_per_epoch();
            (step / steps, (step % steps) as usize * self.batch)
        } else {
            let first = u128::from(step) * batch;
            ((first / len) as u64, (first % len) as usize)
        };
        let mut items = Vec::with_capacity(self.batch);
        while items.len() < self.batch {
            let order = self.order(pass);
            let end = order.len().min(at + self.batch - items.len());
            items.extend(order[at..end].iter().map(|&index| Item { pass, index }));
            pass += 1;
            at = 0;
        }
        items
    }

    fn order(&self, pass: u64) -> Arc<Vec<usize>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = recent.iter().find(|(own, _)| *own == pass) {
            return Arc::clone(order);
        }
        let mut order = self.train.clone();
        Rng::for_example(self.seed, "order", pass, 0).shuffle(&mut order);
        let order = Arc::new(order);
        recent.push_back((pass, Arc::clone(&order)));
        if recent.len() > KEPT {
            recent.pop_front();
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_meets_every_example_once_but_for_the_partial_batch() {
        let order = Order::new(5, 4, (100..111).collect());
        assert_eq!(order.steps_per_epoch(), 2);
        for epoch in 0..3 {
            let mut seen: Vec<usize> = (0..2)
                .flat_map(|step| order.items(epoch * 2 + step))
                .inspect(|item| assert_eq!(item.pass, epoch))
                .map(|item| item.index)
                .collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 8);
        }
        assert_ne!(order.items(0), order.items(2));
    }

    #[test]
    fn few_examples_wrap_into_the_next_pass() {
        let order = Order::new(5, 4, vec![7, 8, 9]);
        assert_eq!(order.steps_per_epoch(), 1);
        let items: Vec<Item> = (0..3).flat_map(|step| order.items(step)).collect();
        assert_eq!(items.len(), 12);
        for (pass, items) in items.chunks(3).enumerate() {
            let mut indices: Vec<usize> = items.iter().map(|item| item.index).collect();
            indices.sort_unstable();
            assert_eq!(indices, [7, 8, 9]);
            assert!(items.iter().all(|item| item.pass == pass as u64));
        }
        let one = Order::new(5, 3, vec![2]);
        assert_eq!(one.items(9).iter().map(|i| i.pass).collect::<Vec<_>>(), [27, 28, 29]);
    }
}
