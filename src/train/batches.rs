//! Prefetch of batches.

use std::sync::mpsc::{self, Receiver};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::device::threads;

/// The most batches that are ready ahead of their steps.
const AHEAD: usize = 3;

/// The results of `make` for a range of steps, in order: prefetched on a thread, or made on demand if the system gives
/// no thread. Dropping it ends the thread, so that no scope waits for a thread that waits for a reader.
pub(super) enum Batches<'scope, B, F> {
    Ahead { receive: Receiver<B>, maker: Option<ScopedJoinHandle<'scope, ()>> },
    WhenAsked { steps: std::ops::Range<usize>, make: F },
}

impl<'scope, B, F> Batches<'scope, B, F>
where
    B: Send + 'scope,
    F: Fn(usize) -> B + Clone + Send + 'scope,
{
    /// The batches of `steps`.
    pub fn new<'env>(scope: &'scope Scope<'scope, 'env>, steps: std::ops::Range<usize>, make: F) -> Self {
        if !threads::has_room() {
            return Self::WhenAsked { steps, make };
        }
        let (send, receive) = mpsc::sync_channel(AHEAD);
        let (theirs, order) = (make.clone(), steps.clone());
        let maker = Builder::new().name("batches".into()).spawn_scoped(scope, move || {
            for step in order {
                // A step failed and dropped the receiver: no more batches are needed.
                if send.send(theirs(step)).is_err() {
                    return;
                }
            }
        });
        match maker {
            Ok(maker) => Self::Ahead { receive, maker: Some(maker) },
            Err(_) => Self::WhenAsked { steps, make },
        }
    }

    /// The next batch; `None` after the last.
    ///
    /// # Panics
    /// If `make` panicked.
    pub fn next(&mut self) -> Option<B> {
        match self {
            Self::WhenAsked { steps, make } => steps.next().map(make),
            Self::Ahead { receive, maker } => receive.recv().ok().or_else(|| {
                // The thread has ended: after the last batch or by a panic, which is passed on.
                if let Some(Err(panic)) = maker.take().map(ScopedJoinHandle::join) {
                    std::panic::resume_unwind(panic);
                }
                None
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{catch_unwind, AssertUnwindSafe};
    use std::time::{Duration, Instant};

    use super::*;

    /// Runs `work` on a thread. Fails if it takes longer than a minute, as a deadlock does.
    fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || send.send(work()));
        receive.recv_timeout(Duration::from_secs(60)).expect("an end")
    }

    fn read(count: usize) -> Vec<usize> {
        std::thread::scope(|scope| {
            let mut batches = Batches::new(scope, 2..50, |step| step * step);
            std::iter::from_fn(|| batches.next()).take(count).collect()
        })
    }

    #[test]
    fn batches_come_in_order_and_a_reader_may_stop_anywhere() {
        let all: Vec<usize> = (2..50).map(|step| step * step).collect();
        for count in [0, 1, 3, 4, 5, 47, 48, 49] {
            assert_eq!(ends(move || read(count)), all[..count.min(48)]);
        }
        let mut asked = Batches::WhenAsked { steps: 2..50, make: |step| step * step };
        assert_eq!(std::iter::from_fn(|| asked.next()).collect::<Vec<_>>(), all);
    }

    #[test]
    fn a_panic_of_the_maker_or_the_reader_ends_both() {
        for at in [0, 1, 10] {
            let made = ends(move || {
                let mut seen = 0;
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    std::thread::scope(|scope| {
                        let mut batches =
                            Batches::new(scope, 0..20, move |step| assert!(step != at, "no batch {step}"));
                        while batches.next().is_some() {
                            seen += 1;
                        }
                    })
                }));
                (seen, outcome.is_err())
            });
            assert_eq!(made, (at, true), "the batches before the panic, then the panic");
            let start = Instant::now();
            let panicked = ends(move || {
                catch_unwind(AssertUnwindSafe(|| {
                    std::thread::scope(|scope| {
                        let mut batches = Batches::new(scope, 0..1000, |step| step);
                        while batches.next().is_some_and(|step| step < at) {}
                        panic!("in step {at}");
                    })
                }))
                .is_err()
            });
            assert!(panicked && start.elapsed() < Duration::from_secs(30));
        }
    }
}
