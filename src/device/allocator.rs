//! An allocator for programs that ends them with one line when the system is out of memory.
//!
//! If the system refuses memory of a tensor's size, the library returns a typed error. For any other allocation Rust
//! prints a message and a backtrace and aborts, which a program's user does not understand.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Cursor, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::tensor::memory;

/// The system's allocator. If the system refuses memory that the caller needs, it prints
/// `error: out of memory: N bytes were wanted` on standard error and ends the process with exit code 1.
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: residuum::device::ExitWhereMemoryEnds = residuum::device::ExitWhereMemoryEnds;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ExitWhereMemoryEnds;

impl ExitWhereMemoryEnds {
    /// True if the system gives `bytes` bytes now. Ask before optional work: a refused allocation ends the process.
    pub fn has_room(bytes: usize) -> bool {
        memory::room::<u8>("room", bytes).is_ok()
    }
}

// SAFETY: every call goes to the system's allocator unchanged; if that returns null, this does too or never returns.
unsafe impl GlobalAlloc for ExitWhereMemoryEnds {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the contract is the system allocator's.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the contract is the system allocator's.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the contract is the system allocator's.
        given(unsafe { System.realloc(p, layout, bytes) }, bytes)
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the contract is the system allocator's.
        unsafe { System.dealloc(p, layout) }
    }
}

/// `p`; never returns if it is null and the caller needs the `bytes` bytes.
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
    let mut line = Cursor::new([0u8; 96]);
    // It fits.
    let _ = writeln!(line, "error: out of memory: {bytes} bytes were wanted");
    exit(&line.get_ref()[..line.position() as usize])
}

/// Prints `line` and ends the process at once: an orderly exit may need memory, and a thread that waits for this one
/// may hold the lock of [`std::io::stderr`].
#[cfg(unix)]
fn exit(line: &[u8]) -> ! {
    extern "C" {
        fn write(file: i32, bytes: *const u8, count: usize) -> isize;
        fn _exit(code: i32) -> !;
    }
    // SAFETY: the bytes are `line`'s. If standard error is closed there is nobody to tell.
    let _ = unsafe { write(2, line.as_ptr(), line.len()) };
    // SAFETY: it does not return, and takes any code.
    unsafe { _exit(1) }
}

#[cfg(not(unix))]
fn exit(line: &[u8]) -> ! {
    let _ = std::io::stderr().write_all(line);
    std::process::exit(1)
}
