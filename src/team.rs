//! The threads of a model: the one that calls, and helpers.
//!
//! Who hands a call to a pool sleeps meanwhile, and is woken in the end: as long as a tenth of a short note takes. Here the caller
//! computes, and helpers take what they come in time for. One that has come is waited for.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Thread};

use crate::error::{Error, ErrorKind, Result};

/// Work that any number of threads do at once until none of it is left, each with its number; the caller's is 0.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// The helpers of whoever calls. They end with it.
pub(crate) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<Thread>,
    /// Whether the helpers are at a call's work.
    is_led: AtomicBool,
    /// That which has the helpers; one that was forked from it has none, and some systems let nobody wake what is not there.
    process: u32,
}

struct Shared {
    /// Helpers at the work ([`AT_WORK`]), [`IS_AWAITED`], [`IS_OPEN`], [`HAS_ENDED`], and above them the work's number ([`NUMBER`]).
    state: AtomicUsize,
    /// Helpers that may join the work; fewer than there are where other calls have threads of their own.
    places: AtomicUsize,
    /// Calls that compute, each on a thread of its own.
    calls: AtomicUsize,
    /// Of each helper.
    is_asleep: Vec<AtomicBool>,
    /// Written while no helper is at work and none can join, read by those that have.
    work: UnsafeCell<Option<*const Work<'static>>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// For the caller that waits for the last helper.
    last: (Mutex<()>, Condvar),
}

// SAFETY: `work` is all that is not so by itself. What it points to is `Sync`. It has one writer, who has set `Team::is_led`, and is read by
// those that are counted in `state`, whom that writer waits for.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

const AT_WORK: usize = (1 << 12) - 1;
const IS_AWAITED: usize = 1 << 12;
const IS_OPEN: usize = 1 << 13;
const HAS_ENDED: usize = 1 << 14;
const NUMBER: usize = 1 << 15;

const _: () = assert!(crate::device::MAX_THREADS < AT_WORK);

/// How often a helper looks for work before it lets others go first: for 6 µs on Zen 4, as the times below.
const LOOKS: usize = 1 << 8;
/// How often it does that before it sleeps, while a call computes and when none does: for 2 ms, which is longer than others are at a piece that
/// it waits for, and for 60 µs. Who falls asleep in between comes late again.
const YIELDS: usize = 1 << 12;
const LAST_YIELDS: usize = 1 << 7;
/// How often the caller looks whether the helpers have ended before it sleeps: for 0.8 ms. It lets nobody go first, who might keep its core.
const LAST_LOOKS: usize = 1 << 15;

impl Team {
    /// As many threads, the caller's among them.
    pub(crate) fn start(threads: usize) -> Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            state: AtomicUsize::new(0),
            places: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            is_asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            work: UnsafeCell::new(None),
            panic: Mutex::default(),
            last: Default::default(),
        });
        // Those that have started end with it where one does not.
        let mut team = Team {
            shared,
            helpers: Vec::new(),
            is_led: AtomicBool::new(false),
            process: if threads > 1 { std::process::id() } else { 0 },
        };
        for helper in 0..threads.saturating_sub(1) {
            let shared = team.shared.clone();
            let started = Builder::new().name(format!("ampoule-{}", helper + 1)).spawn(move || shared.help(helper));
            let started = started.map_err(|e| {
                Error::new(ErrorKind::DeviceUnavailable, format!("cannot start {threads} threads: {e}")).with_source(e)
            })?;
            team.helpers.push(started.thread().clone());
        }
        Ok(Arc::new(team))
    }

    /// Threads, the caller's among them.
    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs what computes, on the thread that calls; helpers wake up meanwhile.
    pub(crate) fn call<T>(&self, f: impl FnOnce() -> T) -> T {
        struct Call<'a>(&'a Shared);

        impl Drop for Call<'_> {
            fn drop(&mut self) {
                self.0.calls.fetch_sub(1, Ordering::Relaxed);
            }
        }

        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        let _call = Call(&self.shared);
        self.wake(self.free());
        f()
    }

    /// Does `work` of so many pieces here, with those helpers that join before it has ended here, and returns when all have ended. It is
    /// done here alone where they are at another call's.
    pub(crate) fn together(&self, pieces: usize, work: &Work) {
        let helpers = self.free().min(pieces.saturating_sub(1));
        if helpers == 0 || self.is_led.swap(true, Ordering::Acquire) {
            return work(0);
        }
        let shared = &*self.shared;
        // SAFETY: no helper is at work, and none can join before the state says so. Whoever has joined is waited for, below, before `work`
        // is gone, also where it panics here.
        unsafe {
            *shared.work.get() = Some(std::mem::transmute::<*const Work, *const Work<'static>>(work));
        }
        shared.places.store(helpers, Ordering::Relaxed);
        let number = shared.state.load(Ordering::Relaxed) / NUMBER;
        shared.state.store(number.wrapping_add(1).wrapping_mul(NUMBER) | IS_OPEN, Ordering::SeqCst);
        self.wake(helpers);
        let here = catch_unwind(AssertUnwindSafe(|| work(0)));
        shared.close();
        let there = lock(&shared.panic).take();
        self.is_led.store(false, Ordering::Release);
        if let Some(panic) = here.err().or(there) {
            resume_unwind(panic);
        }
    }

    /// Helpers for one call, so that threads are no more than there are to be once each call has begun its next piece of work.
    fn free(&self) -> usize {
        let others = self.shared.calls.load(Ordering::Relaxed).saturating_sub(1);
        self.helpers.len().saturating_sub(others)
    }

    fn wake(&self, helpers: usize) {
        for (is_asleep, helper) in self.shared.is_asleep.iter().zip(&self.helpers).take(helpers) {
            if is_asleep.load(Ordering::SeqCst)
                && std::process::id() == self.process
                && is_asleep.swap(false, Ordering::SeqCst)
            {
                helper.unpark();
            }
        }
    }
}

impl Drop for Team {
    /// Does not wait for the helpers, which a forked process has not.
    fn drop(&mut self) {
        self.shared.state.fetch_or(HAS_ENDED, Ordering::SeqCst);
        self.wake(self.helpers.len());
    }
}

impl Shared {
    /// What a helper does all its life.
    fn help(&self, helper: usize) {
        let mut seen = 0;
        while let Some(number) = self.join(helper, seen) {
            seen = number;
            // SAFETY: it was written before the state was open, and nobody writes it, and it is not gone, while this helper is counted.
            let work = unsafe { (*self.work.get()).map(|work| &*work) };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work.iter().for_each(|work| work(helper + 1)))) {
                lock(&self.panic).get_or_insert(panic);
            }
            if self.state.fetch_sub(1, Ordering::AcqRel) & (AT_WORK | IS_AWAITED) == IS_AWAITED | 1 {
                let _last = lock(&self.last.0);
                self.last.1.notify_all();
            }
        }
    }

    /// Waits for work that this helper has not seen, and counts it in; none when the team has ended.
    fn join(&self, helper: usize, seen: usize) -> Option<usize> {
        let mut idle = 0;
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if state & HAS_ENDED != 0 {
                return None;
            }
            if self.is_for(helper, seen, state) {
                let joined = self.state.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed);
                if joined.is_ok() {
                    return Some(state / NUMBER);
                }
                continue;
            }
            idle += 1;
            if idle < LOOKS {
                std::hint::spin_loop();
            } else if idle < LOOKS + if self.calls.load(Ordering::Relaxed) > 0 { YIELDS } else { LAST_YIELDS } {
                std::thread::yield_now();
            } else {
                let is_asleep = &self.is_asleep[helper];
                is_asleep.store(true, Ordering::SeqCst);
                // What came in between woke nobody.
                let state = self.state.load(Ordering::SeqCst);
                if state & HAS_ENDED == 0 && !self.is_for(helper, seen, state) {
                    while is_asleep.load(Ordering::SeqCst) {
                        std::thread::park();
                    }
                }
                is_asleep.store(false, Ordering::SeqCst);
                idle = 0;
            }
        }
    }

    fn is_for(&self, helper: usize, seen: usize, state: usize) -> bool {
        state & IS_OPEN != 0 && state / NUMBER != seen && helper < self.places.load(Ordering::Relaxed)
    }

    /// Lets nobody join any more, and waits for those that have.
    fn close(&self) {
        self.state.fetch_and(!IS_OPEN, Ordering::AcqRel);
        let is_at_work = || self.state.load(Ordering::Acquire) & AT_WORK != 0;
        for _ in 0..LAST_LOOKS {
            if !is_at_work() {
                return;
            }
            std::hint::spin_loop();
        }
        let mut last = lock(&self.last.0);
        self.state.fetch_or(IS_AWAITED, Ordering::AcqRel);
        while is_at_work() {
            last = self.last.1.wait(last).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Adds the numbers below `n`, each taken by whoever comes first; says who took how many.
    fn sum(team: &Team, n: usize) -> (usize, Vec<usize>) {
        let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let taken: Vec<_> = (0..team.threads()).map(|_| AtomicUsize::new(0)).collect();
        team.together(n, &|thread| {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= n {
                    break;
                }
                sum.fetch_add(number, Ordering::Relaxed);
                taken[thread].fetch_add(1, Ordering::Relaxed);
            }
        });
        (sum.into_inner(), taken.into_iter().map(AtomicUsize::into_inner).collect())
    }

    #[test]
    fn all_of_the_work_is_done_once_whoever_comes() {
        for threads in [1, 2, 3, 8] {
            let team = Team::start(threads).unwrap();
            for pieces in 0..2_000 {
                // Helpers sleep in some of the pauses, fall asleep in some, and are awake after the others.
                if pieces % 100 == 0 {
                    std::thread::sleep(Duration::from_micros(pieces as u64));
                }
                let (sum, taken) = sum(&team, pieces % 67);
                assert_eq!(sum, (0..pieces % 67).sum::<usize>(), "{threads} threads");
                assert_eq!(taken.iter().sum::<usize>(), pieces % 67);
            }
        }
    }

    #[test]
    fn helpers_come_and_are_waited_for() {
        let team = Team::start(4).unwrap();
        let (come, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
        team.together(4, &|_| {
            come.fetch_add(1, Ordering::SeqCst);
            while come.load(Ordering::SeqCst) < 4 {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
            ended.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(ended.into_inner(), 4);
    }

    #[test]
    fn calls_at_once_share_the_threads_and_one_within_another_computes() {
        let team = Team::start(3).unwrap();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let all_here = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    team.call(|| {
                        all_here.wait();
                        for _ in 0..50 {
                            team.together(3, &|_| {
                                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                                std::thread::sleep(Duration::from_micros(200));
                                assert_eq!(sum(&team, 100).0, 4950);
                                now.fetch_sub(1, Ordering::SeqCst);
                            });
                        }
                        all_here.wait();
                    });
                });
            }
        });
        let most = most.into_inner();
        assert!((2..=3).contains(&most), "{most}");
        team.call(|| team.together(3, &|_| assert_eq!(sum(&team, 100).0, 4950)));
    }

    #[test]
    fn no_helper_comes_for_what_is_one_piece() {
        let team = Team::start(4).unwrap();
        for (pieces, most) in [(0, 1), (1, 1), (2, 2)] {
            let come = AtomicUsize::new(0);
            team.together(pieces, &|_| {
                come.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            });
            assert!(come.into_inner() <= most, "{pieces} pieces");
        }
    }

    #[test]
    fn a_panic_of_anybodys_is_the_callers_and_the_team_goes_on() {
        let team = Team::start(3).unwrap();
        for panics in 0..3 {
            let come = AtomicUsize::new(0);
            let work = |thread| {
                come.fetch_add(1, Ordering::SeqCst);
                while come.load(Ordering::SeqCst) < 3 {
                    std::thread::yield_now();
                }
                assert!(thread != panics, "planted");
            };
            let caught = catch_unwind(AssertUnwindSafe(|| team.together(3, &work))).unwrap_err();
            assert_eq!(caught.downcast_ref::<&str>(), Some(&"planted"));
            assert_eq!(sum(&team, 100).0, 4950);
        }
    }
}
