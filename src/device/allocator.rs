//! An allocator for programs, which ends them in one line where the system has no memory left.
//!
//! What the library allocates of a tensor's size may be refused and is a typed error. For everything else Rust's answer
//! is a message, a backtrace and an abort, which a program's user does not understand.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::tensor::memory;

/// The system's allocator. Where the system refuses memory and the caller cannot do without, it prints
/// `error: out of memory: N bytes were wanted` on standard error and ends the process with exit code 1.
///
/// ```text
/// #[global_allocator]
/// static ALLOCATOR: residuum::device::ExitWhereMemoryEnds = residuum::device::ExitWhereMemoryEnds;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ExitWhereMemoryEnds;

impl ExitWhereMemoryEnds {
    /// Whether the system gives `bytes` bytes now. Ask it before work that the process can do without and that
    /// allocates as everywhere in Rust.
    pub fn has_room(bytes: usize) -> bool {
        memory::room::<u8>("room", bytes).is_ok()
    }
}

// SAFETY: every call goes to the system's allocator unchanged; where it returns null, so does this, or not at all.
unsafe impl GlobalAlloc for ExitWhereMemoryEnds {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        given(unsafe { System.realloc(p, layout, bytes) }, bytes)
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
}

/// `p`, unless it is null and the caller cannot do without `bytes` bytes.
fn given(p: *mut u8, bytes: usize) -> *mut u8 {
    if p.is_null() && !memory::is_fallible() {
        end(bytes);
    }
    p
}

/// Ends the process; allocates nothing.
#[cold]
fn end(bytes: usize) -> ! {
    static ENDS: AtomicBool = AtomicBool::new(false);
    if ENDS.swap(true, Ordering::Relaxed) {
        // Another thread is doing it.
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    let mut line = [0u8; 96];
    let mut rest = &mut line[..];
    // It fits.
    let _ = writeln!(rest, "error: out of memory: {bytes} bytes were wanted");
    let left = rest.len();
    exit(&line[..line.len() - left])
}

/// Prints `line` and ends the process at once: what runs at an orderly end may need memory, and the lock of
/// [`std::io::stderr`] may be held by a thread that waits for this one.
#[cfg(unix)]
fn exit(line: &[u8]) -> ! {
    extern "C" {
        fn write(file: i32, bytes: *const u8, count: usize) -> isize;
        fn _exit(code: i32) -> !;
    }
    // SAFETY: the bytes are `line`'s. Where standard error is closed there is nobody to tell.
    let _ = unsafe { write(2, line.as_ptr(), line.len()) };
    // SAFETY: it does not return, and takes any code.
    unsafe { _exit(1) }
}

#[cfg(not(unix))]
fn exit(line: &[u8]) -> ! {
    let _ = std::io::stderr().write_all(line);
    std::process::exit(1)
}
