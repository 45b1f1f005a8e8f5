//! Thread creation that tolerates a system limit: any thread but the first may be refused.
//!
//! rayon builds its global pool on first use, panics if it cannot spawn a thread, and can never retry. So this module
//! spawns the threads first and builds the pool from the threads that started. If none started, the calling thread is
//! the pool.

use std::cell::Cell;
use std::sync::{mpsc, Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use crate::tensor::memory;

/// Bytes for a new thread: its stack, the stack of its signal handlers (Rust aborts without it), and its work.
const ROOM: usize = 8 << 20;

/// Makes rayon usable on this thread, before its first parallel work. Leaves a pool's thread and a global pool alone.
pub(crate) fn ensure() {
    thread_local! {
        static READY: Cell<bool> = const { Cell::new(false) };
    }
    if READY.get() || rayon::current_thread_index().is_some() {
        return;
    }
    if !has_global_pool() {
        // Never dropped: rayon cannot take the thread out of a pool again.
        let own = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
        std::mem::forget(own);
    }
    READY.set(true);
}

/// Runs `work` on this thread and on one for each other core, or fewer if the system refuses threads; returns when all
/// have returned. `work` should take its tasks from a common list.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
///
/// let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
/// residuum::device::threads::together(|| loop {
///     match next.fetch_add(1, Ordering::Relaxed) {
///         task @ 0..100 => sum.fetch_add(task, Ordering::Relaxed),
///         _ => break,
///     };
/// });
/// assert_eq!(sum.into_inner(), 4950);
/// ```
///
/// # Panics
/// If `work` panics on any thread.
pub fn together(work: impl Fn() + Sync) {
    let more = thread::available_parallelism().map_or(0, |n| n.get() - 1);
    thread::scope(|scope| {
        for _ in 0..more {
            if !has_room() || thread::Builder::new().spawn_scoped(scope, &work).is_err() {
                break;
            }
        }
        work();
    });
}

/// True if there is memory for one more thread. Ask before spawning: a thread that finds too little ends the process.
pub fn has_room() -> bool {
    memory::room::<u8>("a thread", ROOM).is_ok()
}

/// True if rayon has a global pool; the first call makes one unless there is one.
fn has_global_pool() -> bool {
    static MADE: OnceLock<bool> = OnceLock::new();
    *MADE.get_or_init(|| {
        let (hand_over, threads) = waiting(wanted());
        if threads == 0 {
            return false;
        }
        // This cannot fail: it makes the pool, or there is one and the threads end.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .spawn_handler(|worker| hand_over.send(worker).map_err(|_| std::io::Error::other("the thread has ended")));
        let _ = pool.build_global();
        true
    })
}

/// The number of threads that rayon would make.
fn wanted() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).filter(|&n| n > 0);
    asked.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)).min(rayon::max_num_threads())
}

/// Starts up to `most` threads that each wait for a rayon worker to run. Returns the channel to them and their number.
fn waiting(most: usize) -> (mpsc::Sender<rayon::ThreadBuilder>, usize) {
    let (hand_over, workers) = mpsc::channel::<rayon::ThreadBuilder>();
    let workers = Arc::new(Mutex::new(workers));
    let start = |_| {
        let workers = workers.clone();
        let run = move || {
            let worker = workers.lock().unwrap_or_else(PoisonError::into_inner).recv();
            if let Ok(worker) = worker {
                worker.run();
            }
        };
        has_room() && thread::Builder::new().spawn(run).is_ok()
    };
    let threads = (0..most).map(start).take_while(|&started| started).count();
    (hand_over, threads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_thread_works_and_the_calling_one_at_least() {
        let runs = AtomicUsize::new(0);
        together(|| {
            runs.fetch_add(1, Ordering::Relaxed);
        });
        assert!((1..=thread::available_parallelism().map_or(1, usize::from)).contains(&runs.into_inner()));
    }

    #[test]
    fn a_users_pool_is_used_unchanged() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("three threads");
        let found = pool.install(|| {
            ensure();
            rayon::current_num_threads()
        });
        assert_eq!(found, 3);
    }

    #[test]
    fn one_thread_alone_is_a_pool() {
        let alone = thread::spawn(|| {
            let own = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
            std::mem::forget(own);
            ensure();
            let sum: u64 = (0..1000u64).into_par_iter().sum();
            let (a, b) = rayon::join(|| 1, || 2);
            (rayon::current_num_threads(), sum, rayon::scope(|_| a + b))
        });
        assert_eq!(alone.join().expect("no panic"), (1, 499_500, 3));
    }
}
