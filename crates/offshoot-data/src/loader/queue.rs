//! The queue between workers and the thread that trains: who makes which step, and what is ready.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::making::Made;

/// Steps are claimed in order, made in any order and taken in order. At most `window` are claimed and not yet taken.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Something was taken, or the end has come.
    room: Condvar,
    /// Something was delivered.
    delivered: Condvar,
    stopped: AtomicBool,
    window: u64,
}

struct State {
    next_claim: u64,
    next_take: u64,
    ready: BTreeMap<u64, Made>,
}

impl Queue {
    pub(super) fn new(first: u64, window: usize) -> Self {
        Self {
            state: Mutex::new(State {
                next_claim: first,
                next_take: first,
                ready: BTreeMap::new(),
            }),
            room: Condvar::new(),
            delivered: Condvar::new(),
            stopped: AtomicBool::new(false),
            window: window as u64,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next step to make, once there is room for it; none when all is over.
    pub(super) fn claim(&self) -> Option<u64> {
        let mut state = self.lock();
        loop {
            if self.is_stopped() {
                return None;
            }
            if state.next_claim < state.next_take + self.window {
                state.next_claim += 1;
                return Some(state.next_claim - 1);
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn deliver(&self, step: u64, made: Made) {
        self.lock().ready.insert(step, made);
        self.delivered.notify_all();
    }

    /// Waits for a step; gives it and how many were ready when it was asked for.
    pub(super) fn take(&self, step: u64) -> (Made, usize) {
        let mut state = self.lock();
        // Only a step without a gap before it could be taken without waiting.
        let ready = (step..).take_while(|step| state.ready.contains_key(step)).count();
        loop {
            if let Some(made) = state.ready.remove(&step) {
                state.next_take = step + 1;
                drop(state);
                self.room.notify_all();
                return (made, ready);
            }
            state = self.delivered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the workers end after the image they are at.
    pub(super) fn stop(&self) {
        // Under the lock, so that no worker can miss it between its look and its wait.
        let state = self.lock();
        self.stopped.store(true, Ordering::Relaxed);
        drop(state);
        self.room.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}
