//! What Ctrl-C does: the program ends at once, whatever it is at, and leaves nothing behind but whole files.

/// From here on an interrupt or a request to end removes what is half done, and then ends the program as it would have
/// ended it. Where the system gives no thread to wait for them, they end it at once.
#[cfg(unix)]
pub fn install() {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::{iterator::Signals, low_level::emulate_default_handler};

    use crate::{failure::note, folder};

    let wait = move || {
        let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
        if let Some(signal) = signals.forever().next() {
            folder::release();
            note("error", "interrupted");
            // It ends the process; where it cannot, the exit code is a shell's for the signal.
            let _ = emulate_default_handler(signal);
            std::process::exit(128 + signal);
        }
    };
    let _ = std::thread::Builder::new().name("signals".into()).spawn(wait);
}

/// An interrupt ends the program as the system does it.
#[cfg(not(unix))]
pub fn install() {}
