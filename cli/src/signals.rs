//! Handlers of signals that would end the program silently or leave temporary files.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc, Once};
use std::time::Duration;

use residuum::device::threads;
use residuum::files::remove_temporaries;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::failure::note;
use crate::folder;

/// Makes a write beyond the file size limit (`ulimit -f`) fail with an error instead of ending the program.
pub fn keep_failing_writes() {
    // It fails only on a system without this signal, which does not need it.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// True while an interrupt is ending the program.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Waits if an interrupt is ending the program, so that a failure caused by the interrupt is not reported.
pub fn give_way() {
    if ENDING.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Installs the handler of SIGINT, SIGTERM and SIGHUP: it removes unfinished temporary files, releases the run's folder
/// and ends the process with the signal's default action, immediately.
pub fn clean_up_when_interrupted() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (ready, registered) = mpsc::channel();
        let wait = move || {
            // A signal that the parent process ignores stays ignored.
            let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP].into_iter().filter(|s| !is_ignored(*s)))
            else {
                return;
            };
            // It fails only if nothing waits any more.
            let _ = ready.send(());
            if let Some(signal) = signals.forever().next() {
                ENDING.store(true, Ordering::SeqCst);
                remove_temporaries();
                folder::release();
                note("error", "interrupted");
                // If this fails the program continues, and its next write fails.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        };
        // Without a thread, an interrupt ends the program by the default action.
        let _ = threads::has_room().then(|| std::thread::Builder::new().name("signals".into()).spawn(wait));
        // It fails if there is no thread, or the thread could not register.
        let _ = registered.recv();
    });
}

/// True if this process is known to ignore `signal`.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
