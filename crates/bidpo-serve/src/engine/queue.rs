//! The queue: clients take turns, each client's jobs stay in order.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// A queue for each client; [`FairQueue::pop`] goes round the clients. One that sends a hundred jobs at once does not make the
/// others wait for a hundred jobs.
#[derive(Debug)]
pub(crate) struct FairQueue<C, J> {
    jobs: HashMap<C, VecDeque<J>>,
    /// Clients with jobs, the next to be served first.
    turns: VecDeque<C>,
}

impl<C: Clone + Eq + Hash, J> FairQueue<C, J> {
    pub(crate) fn new() -> Self {
        Self { jobs: HashMap::new(), turns: VecDeque::new() }
    }

    /// Puts a job behind the client's others; a client that had none gets its turn after those that wait.
    pub(crate) fn push(&mut self, client: C, job: J) {
        let jobs = self.jobs.entry(client.clone()).or_default();
        if jobs.is_empty() {
            self.turns.push_back(client);
        }
        jobs.push_back(job);
    }

    /// The next client's first job.
    pub(crate) fn pop(&mut self) -> Option<J> {
        let client = self.turns.pop_front()?;
        let jobs = self.jobs.get_mut(&client)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.jobs.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        job
    }

    /// Drops the jobs for which `keep` is false.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&J) -> bool) {
        self.jobs.retain(|_, jobs| {
            jobs.retain(&mut keep);
            !jobs.is_empty()
        });
        self.turns.retain(|client| self.jobs.contains_key(client));
    }

    /// Jobs that wait.
    pub(crate) fn len(&self) -> usize {
        self.jobs.values().map(VecDeque::len).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::FairQueue;

    fn drain(queue: &mut FairQueue<char, u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn clients_take_turns() {
        let mut queue = FairQueue::new();
        for job in 0..4 {
            queue.push('a', job);
        }
        queue.push('b', 10);
        queue.push('b', 11);
        queue.push('c', 20);
        assert_eq!(queue.len(), 7);
        assert_eq!(drain(&mut queue), [0, 10, 20, 1, 11, 2, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_newcomer_waits_for_one_round_at_most() {
        let mut queue = FairQueue::new();
        (0..100).for_each(|job| queue.push('a', job));
        assert_eq!(queue.pop(), Some(0));
        queue.push('b', 1000);
        assert_eq!((queue.pop(), queue.pop()), (Some(1), Some(1000)));
    }

    #[test]
    fn who_left_is_forgotten() {
        let mut queue = FairQueue::new();
        (0..3).for_each(|job| queue.push('a', job));
        queue.push('b', 10);
        queue.retain(|&job| job == 1 || job > 10);
        assert_eq!((queue.len(), drain(&mut queue)), (1, vec![1]));
        queue.push('b', 5);
        assert_eq!(drain(&mut queue), [5]);
    }
}
