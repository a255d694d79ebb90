//! Ranges of keys, each done by some worker: again by another one when it fails, twice at one time when it is slow.
//!
//! Doing a range again is always right, because a merge is a function of the set of its rows: whichever copy ends first is *the* result of
//! the range. Results come in the order of the ranges, whatever order they are done in.

use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// A worker that fails so often in a row is left alone. One that is only slow rests, for longer each time.
const MOST_FAILURES: u32 = 3;
/// A range that takes so many times as long as half of them took is given to a second worker.
const SLOW: u32 = 3;

/// So many ranges say how long one usually takes.
const RECENT: usize = 101;

/// Why there are no more results.
#[derive(Debug)]
pub(super) enum Failure<E> {
    /// The job fails wherever it runs.
    Job(E),
    /// Every worker was lost; the last one said this.
    NoWorkers(Option<E>),
}

type Ended<T, E> = (usize, usize, Duration, Option<Result<T, E>>);

/// What time it is, since some beginning.
pub(super) trait Clock {
    fn now(&self) -> Duration;
    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send;
}

/// The machine's own clock.
#[derive(Debug)]
pub(super) struct Wall(Instant);

impl Wall {
    pub(super) fn new() -> Wall {
        Wall(Instant::now())
    }
}

impl Clock for Wall {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }
}

/// The results of ranges of keys, in their order.
pub(super) struct Schedule<W, J, T, E, C> {
    clock: C,
    workers: Vec<Worker<W>>,
    job: J,
    permanent: fn(&E) -> bool,
    ranges: usize,
    /// How many results may wait for those before them.
    ahead: usize,
    /// A range is never called slow before this.
    patience: Duration,
    waiting: BTreeSet<usize>,
    running: FuturesUnordered<BoxFuture<'static, Ended<T, E>>>,
    attempts: BTreeMap<usize, usize>,
    done: BTreeMap<usize, T>,
    next: usize,
    /// How long the latest ranges took, and half of them at most.
    took: VecDeque<Duration>,
    usual: Duration,
    last_error: Option<E>,
    /// Copies that were started because others were slow.
    pub(super) copies: usize,
}

struct Worker<W> {
    address: W,
    doing: Option<(usize, Duration, AbortHandle)>,
    failures: u32,
    /// How often in a row another one was faster, and until when it rests for that.
    slow: u32,
    rests: Option<Duration>,
}

impl<W> Worker<W> {
    fn is_lost(&self) -> bool {
        self.failures >= MOST_FAILURES
    }

    fn is_idle(&self, now: Duration) -> bool {
        self.doing.is_none() && !self.is_lost() && self.rests.is_none_or(|until| now >= until)
    }

    fn succeeded(&mut self) {
        (self.failures, self.slow, self.rests) = (0, 0, None);
    }
}

impl<W, J, T, E, C> Schedule<W, J, T, E, C>
where
    W: Clone,
    C: Clock,
    J: Fn(W, usize) -> BoxFuture<'static, Result<T, E>>,
    T: Send + 'static,
    E: Send + 'static,
{
    pub(super) fn new(clock: C, workers: Vec<W>, ranges: usize, patience: Duration, job: J, permanent: fn(&E) -> bool) -> Self {
        let ahead = 2 * workers.len() + 2;
        let worker = |address| Worker { address, doing: None, failures: 0, slow: 0, rests: None };
        Schedule {
            clock,
            workers: workers.into_iter().map(worker).collect(),
            job,
            permanent,
            ranges,
            ahead,
            patience,
            waiting: (0..ranges).collect(),
            running: FuturesUnordered::new(),
            attempts: BTreeMap::new(),
            done: BTreeMap::new(),
            next: 0,
            took: VecDeque::new(),
            usual: Duration::ZERO,
            last_error: None,
            copies: 0,
        }
    }

    /// The result of the next range.
    pub(super) async fn next(&mut self) -> Option<Result<T, Failure<E>>> {
        loop {
            if let Some(result) = self.done.remove(&self.next) {
                self.next += 1;
                return Some(Ok(result));
            }
            if self.next == self.ranges {
                return None;
            }
            self.assign();
            if self.running.is_empty() && self.workers.iter().all(Worker::is_lost) {
                return Some(Err(Failure::NoWorkers(self.last_error.take())));
            }
            tokio::select! {
                // Without chance: a simulation is the same every time.
                biased;
                Some(ended) = self.running.next() => {
                    if let Err(failure) = self.note(ended) {
                        return Some(Err(failure));
                    }
                }
                // Then some range may have become slow, or some worker rested.
                () = self.clock.sleep(self.patience) => {}
            }
        }
    }

    fn note(&mut self, (worker, range, started, result): Ended<T, E>) -> Result<(), Failure<E>> {
        self.workers[worker].doing = None;
        let known = range < self.next || self.done.contains_key(&range);
        match result {
            Some(Ok(_)) if known => self.workers[worker].succeeded(),
            Some(Ok(result)) => {
                self.workers[worker].succeeded();
                self.took.push_back(self.clock.now() - started);
                if self.took.len() > RECENT {
                    self.took.pop_front();
                }
                self.usual = median(self.took.iter().copied());
                self.done.insert(range, result);
                self.attempts.remove(&range);
                // Whoever else is at it is slow, or gone.
                for (doing, _, copy) in self.workers.iter().filter_map(|w| w.doing.as_ref()) {
                    if *doing == range {
                        copy.abort();
                    }
                }
            }
            Some(Err(error)) if (self.permanent)(&error) => return Err(Failure::Job(error)),
            None => {
                let worker = &mut self.workers[worker];
                worker.rests = Some(self.clock.now() + self.patience * (1 << worker.slow));
                worker.slow = (worker.slow + 1).min(10);
            }
            failed => {
                self.workers[worker].failures += 1;
                let elsewhere = self.workers.iter().any(|w| w.doing.as_ref().is_some_and(|(doing, ..)| *doing == range));
                if !known && !elsewhere {
                    let attempts = self.attempts.entry(range).or_default();
                    *attempts += 1;
                    let often = *attempts > self.workers.len() + 2;
                    match failed {
                        Some(Err(error)) if often => return Err(Failure::Job(error)),
                        // Where no worker is left, it is what the last of them said.
                        Some(Err(error)) => self.last_error = Some(error),
                        _ => {}
                    }
                    self.waiting.insert(range);
                } else if let Some(Err(error)) = failed {
                    self.last_error = Some(error);
                }
            }
        }
        Ok(())
    }

    /// Gives every idle worker something to do.
    fn assign(&mut self) {
        let now = self.clock.now();
        for worker in 0..self.workers.len() {
            if !self.workers[worker].is_idle(now) {
                continue;
            }
            let fresh = self.waiting.first().copied().filter(|range| *range < self.next + self.ahead);
            let range = match fresh {
                Some(range) => {
                    self.waiting.remove(&range);
                    range
                }
                None => match self.slow() {
                    Some(range) => {
                        self.copies += 1;
                        range
                    }
                    None => continue,
                },
            };
            let (abort, registration) = AbortHandle::new_pair();
            self.workers[worker].doing = Some((range, now, abort));
            let job = Abortable::new((self.job)(self.workers[worker].address.clone(), range), registration);
            self.running.push(job.map(move |result| (worker, range, now, result.ok())).boxed());
        }
    }

    /// A range that everyone who is at it has been at for too long; the more are, the longer is too long.
    fn slow(&self) -> Option<usize> {
        let limit = self.patience.max(self.usual * SLOW);
        let now = self.clock.now();
        let mut doing: BTreeMap<usize, (Duration, u32)> = BTreeMap::new();
        for (range, started, _) in self.workers.iter().filter_map(|w| w.doing.as_ref()) {
            let (latest, copies) = doing.entry(*range).or_insert((*started, 0));
            *latest = (*latest).max(*started);
            *copies += 1;
        }
        let late = |(latest, copies): &(Duration, u32)| now - *latest > limit * 2_u32.saturating_pow(copies - 1);
        doing.iter().find(|(_, state)| late(state)).map(|(range, _)| *range)
    }
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    let half = times.len() / 2;
    if times.is_empty() { Duration::ZERO } else { *times.select_nth_unstable(half).1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mergeql_udfs::laws::Random;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll, Waker};

    #[derive(Debug, PartialEq)]
    enum Why {
        Lost,
        Wrong,
    }

    /// A clock that stands still until nothing else is left to do, and then goes to what is waited for next.
    #[derive(Clone, Default)]
    struct Simulated(Arc<Mutex<Time>>);

    #[derive(Default)]
    struct Time {
        now: Duration,
        /// How many were waited for so far: who came first goes first.
        sleeps: u64,
        waited: BTreeMap<(Duration, u64), Waker>,
    }

    impl Simulated {
        fn state(&self) -> std::sync::MutexGuard<'_, Time> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        /// Runs a future to its end.
        fn run<T>(&self, future: impl Future<Output = T>) -> T {
            let mut future = std::pin::pin!(future);
            let mut context = Context::from_waker(Waker::noop());
            loop {
                if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
                    return result;
                }
                let mut state = self.state();
                let ((at, _), waker) = state.waited.pop_first().expect("something is waited for");
                state.now = at;
                drop(state);
                waker.wake();
            }
        }
    }

    impl Clock for Simulated {
        fn now(&self) -> Duration {
            self.state().now
        }

        fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send {
            let mut state = self.state();
            state.sleeps += 1;
            let until = (state.now + time, state.sleeps);
            drop(state);
            Sleep { clock: self.clone(), until }
        }
    }

    struct Sleep {
        clock: Simulated,
        until: (Duration, u64),
    }

    impl Future for Sleep {
        type Output = ();

        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            let mut state = self.clock.state();
            if state.now >= self.until.0 {
                return Poll::Ready(());
            }
            state.waited.insert(self.until, context.waker().clone());
            Poll::Pending
        }
    }

    impl Drop for Sleep {
        fn drop(&mut self) {
            self.clock.state().waited.remove(&self.until);
        }
    }

    /// What 100 nodes did with 10,000 ranges: jobs fail, hang, dawdle and are done twice; every third node dies for good.
    fn hundred_nodes(seed: u64) -> (usize, usize, Duration) {
        let clock = Simulated::default();
        let random = Arc::new(Mutex::new(Random(seed)));
        let runs = Arc::new(AtomicUsize::new(0));
        let (counted, times) = (runs.clone(), clock.clone());
        let job = move |node: usize, range: usize| {
            let (random, counted, clock) = (random.clone(), counted.clone(), times.clone());
            async move {
                let run = counted.fetch_add(1, Ordering::Relaxed);
                let below = |n| random.lock().unwrap_or_else(std::sync::PoisonError::into_inner).below(n);
                let (chance, took) = (below(1000), below(600) as u64);
                if node.is_multiple_of(3) && run > 2000 {
                    // It is gone: some say so, of others nothing is heard again.
                    return if node.is_multiple_of(2) { Err(Why::Lost) } else { std::future::pending().await };
                }
                match chance {
                    0..20 => return Err(Why::Lost),
                    20..25 => std::future::pending().await,
                    25..35 => clock.sleep(Duration::from_millis(80)).await,
                    _ => clock.sleep(Duration::from_micros(took)).await,
                }
                Ok((range, range * range))
            }
            .boxed()
        };
        let nodes = (0..100).collect();
        let mut schedule = Schedule::new(clock.clone(), nodes, 10_000, Duration::from_millis(10), job, |e| *e == Why::Wrong);
        clock.run(async {
            let mut expected = 0;
            while let Some(result) = schedule.next().await {
                assert_eq!(result.unwrap_or_else(|e| panic!("seed {seed}: {e:?}")), (expected, expected * expected));
                expected += 1;
            }
            assert_eq!(expected, 10_000);
        });
        (runs.load(Ordering::Relaxed), schedule.copies, clock.now())
    }

    #[test]
    fn a_hundred_nodes_do_ten_thousand_ranges() {
        for seed in 1..4 {
            let (runs, copies, took) = hundred_nodes(seed);
            assert!(copies > 10 && runs > 10_000, "nothing was done twice");
            // A seed says all: who failed when, and how long it took.
            assert_eq!(hundred_nodes(seed), (runs, copies, took), "seed {seed}");
        }
        assert_ne!(hundred_nodes(1), hundred_nodes(2));
    }

    #[tokio::test]
    async fn failures_that_no_worker_is_to_blame_for_end_it() {
        let wrong = |_: usize, range: usize| async move { if range == 7 { Err(Why::Wrong) } else { Ok(range) } }.boxed();
        let mut schedule = Schedule::new(Wall::new(), vec![0, 1], 20, Duration::from_millis(5), wrong, |e| *e == Why::Wrong);
        let mut given = 0;
        let end = loop {
            match schedule.next().await {
                Some(Ok(_)) => given += 1,
                other => break other,
            }
        };
        assert!(matches!(end, Some(Err(Failure::Job(Why::Wrong)))) && given <= 7);
        let gone = |_: usize, _: usize| async { Err::<usize, _>(Why::Lost) }.boxed();
        let mut schedule = Schedule::new(Wall::new(), vec![0, 1, 2], 5, Duration::from_millis(5), gone, |_| false);
        assert!(matches!(schedule.next().await, Some(Err(Failure::NoWorkers(_) | Failure::Job(Why::Lost)))));
    }
}
