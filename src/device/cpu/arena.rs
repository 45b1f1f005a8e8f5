//! A program's memory on the CPU, and the tensors in it.

use std::alloc::{alloc_zeroed, dealloc, Layout};
use std::ptr::NonNull;

use crate::tensor::{memory, Elem, Real};
use crate::{Error, Result};

/// A tensor on the host, by its kind of element.
#[derive(Clone, Copy, Debug)]
pub enum Elements<R, I, B> {
    /// [`Elem::Real`] and [`Elem::Stat`].
    Real(R),
    /// Labels.
    Index(I),
    /// Window positions.
    Byte(B),
}

/// A tensor on the host, to read.
pub type HostRef<'a, T> = Elements<&'a [T], &'a [i32], &'a [u8]>;

/// A tensor on the host, to write.
pub type HostMut<'a, T> = Elements<&'a mut [T], &'a mut [i32], &'a mut [u8]>;

impl<'a, T> HostRef<'a, T> {
    /// The numbers; panics if it holds other elements.
    pub fn real(&self) -> &'a [T] {
        let Self::Real(v) = *self else { panic!("a tensor of numbers is expected here") };
        v
    }

    /// The labels; panics if it holds other elements.
    pub fn index(&self) -> &'a [i32] {
        let Self::Index(v) = *self else { panic!("a tensor of labels is expected here") };
        v
    }

    /// The window positions; panics if it holds other elements.
    pub fn byte(&self) -> &'a [u8] {
        let Self::Byte(v) = *self else { panic!("a tensor of window positions is expected here") };
        v
    }
}

impl<T> HostMut<'_, T> {
    /// The numbers; panics if it holds other elements.
    pub fn real(&mut self) -> &mut [T] {
        let Self::Real(v) = self else { panic!("a tensor of numbers is expected here") };
        v
    }

    /// The labels; panics if it holds other elements.
    pub fn index(&mut self) -> &mut [i32] {
        let Self::Index(v) = self else { panic!("a tensor of labels is expected here") };
        v
    }

    /// The window positions; panics if it holds other elements.
    pub fn byte(&mut self) -> &mut [u8] {
        let Self::Byte(v) = self else { panic!("a tensor of window positions is expected here") };
        v
    }
}

/// The place of a tensor in an [`Arena`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The first byte; a multiple of the element's size.
    pub offset: usize,
    /// Elements.
    pub len: usize,
    /// Their kind; [`Elem::Real`] and [`Elem::Stat`] are `T`s.
    pub elem: Elem,
}

impl Slot {
    fn bytes<T: Real>(&self) -> usize {
        let element = match self.elem {
            Elem::Real | Elem::Stat => size_of::<T>(),
            Elem::Index => 4,
            Elem::Byte => 1,
        };
        assert!(self.offset.is_multiple_of(element), "{self:?} is not aligned to its elements of {element} bytes");
        self.len.saturating_mul(element)
    }
}

/// A program's memory on the CPU: zeros at first, at a multiple of 64. All `layout.size()` bytes from `start` on are
/// allocated, initialised and owned by the arena alone.
#[derive(Debug)]
pub struct Arena {
    start: NonNull<u8>,
    layout: Layout,
    bytes: usize,
}

// SAFETY: an arena owns its memory alone, and lends it only by the rules of borrowing.
unsafe impl Send for Arena {}
// SAFETY: as above; a shared arena only lends memory to read.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves `bytes` bytes; fails if the system has no memory for them.
    pub fn new(bytes: usize) -> Result<Self> {
        let refused = || Error::out_of_memory("a program on the CPU", bytes);
        let layout = Layout::from_size_align(bytes.max(1), 64).map_err(|_| refused())?;
        // SAFETY: the size is not 0.
        let start = memory::fallible(|| NonNull::new(unsafe { alloc_zeroed(layout) })).ok_or_else(refused)?;
        Ok(Self { start, layout, bytes })
    }

    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The tensor in `slot`, to read.
    ///
    /// # Panics
    /// If it is not aligned or exceeds the arena.
    pub fn read<T: Real>(&self, slot: &Slot) -> HostRef<'_, T> {
        let p = self.locate::<T>(slot);
        // SAFETY: `locate` checked that the elements lie in the arena and are aligned; the arena's bytes are
        // initialised, any bits are valid elements, and nothing writes while `self` is shared.
        unsafe {
            match slot.elem {
                Elem::Real | Elem::Stat => HostRef::Real(std::slice::from_raw_parts(p.cast(), slot.len)),
                Elem::Index => HostRef::Index(std::slice::from_raw_parts(p.cast(), slot.len)),
                Elem::Byte => HostRef::Byte(std::slice::from_raw_parts(p, slot.len)),
            }
        }
    }

    /// The tensor in `slot`, to write.
    ///
    /// # Panics
    /// If it is not aligned or exceeds the arena.
    pub fn write<T: Real>(&mut self, slot: &Slot) -> HostMut<'_, T> {
        let p = self.locate::<T>(slot);
        // SAFETY: `locate` checked bounds and alignment; the slice borrows the arena exclusively.
        unsafe { exclusive(p, slot) }
    }

    /// The tensors of one step of a program: `reads` to read, `writes` to write.
    ///
    /// # Panics
    /// If one is not aligned or exceeds the arena, or one of `writes` overlaps any other.
    pub fn slices<T: Real>(&mut self, reads: &[Slot], writes: &[Slot]) -> (Vec<HostRef<'_, T>>, Vec<HostMut<'_, T>>) {
        for (i, a) in writes.iter().enumerate() {
            for b in writes[i + 1..].iter().chain(reads) {
                let before = |a: &Slot, b: &Slot| a.offset.saturating_add(a.bytes::<T>()) <= b.offset;
                assert!(before(a, b) || before(b, a) || a.len == 0 || b.len == 0, "{a:?} is written, overlaps {b:?}");
            }
        }
        let starts: Vec<*mut u8> = writes.iter().map(|slot| self.locate::<T>(slot)).collect();
        // SAFETY: `locate` checked bounds and alignment, and the loop above that none of `writes` overlaps another
        // slice. The slices borrow the arena exclusively.
        let writes = starts.into_iter().zip(writes).map(|(p, slot)| unsafe { exclusive(p, slot) }).collect();
        (reads.iter().map(|slot| self.read(slot)).collect(), writes)
    }

    /// The first byte of `slot`, whose elements are aligned and lie in the arena: panics if not.
    fn locate<T: Real>(&self, slot: &Slot) -> *mut u8 {
        let end = slot.offset.checked_add(slot.bytes::<T>());
        assert!(end.is_some_and(|end| end <= self.bytes), "{slot:?} exceeds an arena of {} bytes", self.bytes);
        // SAFETY: the offset is at most the arena's bytes, as asserted; `bytes` checked the alignment.
        unsafe { self.start.as_ptr().add(slot.offset) }
    }
}

/// The elements at `p`.
///
/// # Safety
/// They lie in an arena, are aligned, and nothing else reaches them during `'a`.
unsafe fn exclusive<'a, T: Real>(p: *mut u8, slot: &Slot) -> HostMut<'a, T> {
    // SAFETY: this function's contract; an arena's bytes are initialised and any bits are valid elements.
    unsafe {
        match slot.elem {
            Elem::Real | Elem::Stat => HostMut::Real(std::slice::from_raw_parts_mut(p.cast(), slot.len)),
            Elem::Index => HostMut::Index(std::slice::from_raw_parts_mut(p.cast(), slot.len)),
            Elem::Byte => HostMut::Byte(std::slice::from_raw_parts_mut(p, slot.len)),
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `new` allocated it with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(offset: usize, len: usize, elem: Elem) -> Slot {
        Slot { offset, len, elem }
    }

    #[test]
    fn an_arena_hands_out_disjoint_slices() {
        let mut arena = Arena::new(256).expect("memory");
        let (a, b) = (slot(0, 4, Elem::Real), slot(64, 4, Elem::Stat));
        let (labels, window) = (slot(128, 3, Elem::Index), slot(140, 5, Elem::Byte));
        arena.write::<f32>(&a).real().copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        let (reads, mut writes) = arena.slices::<f32>(&[a, a], &[b, labels, window]);
        assert_eq!(reads[0].real().as_ptr() as usize % 64, 0);
        writes[0].real().copy_from_slice(reads[1].real());
        writes[1].index().fill(7);
        writes[2].byte().fill(9);
        assert_eq!(arena.read::<f32>(&b).real(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(arena.read::<f32>(&labels).index(), [7; 3]);
        assert_eq!(arena.read::<f32>(&window).byte(), [9; 5]);
    }

    fn panics(f: impl FnOnce()) -> bool {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err()
    }

    #[test]
    fn an_arena_refuses_aliasing_slices() {
        let mut arena = Arena::new(256).expect("memory");
        let (a, b) = (slot(0, 4, Elem::Real), slot(12, 4, Elem::Real));
        assert!(panics(|| drop(arena.slices::<f32>(&[a], &[b]))), "read and written");
        assert!(panics(|| drop(arena.slices::<f32>(&[], &[a, b]))), "written twice");
        assert!(!panics(|| drop(arena.slices::<f32>(&[a, b], &[]))), "read twice");
        assert!(panics(|| drop(arena.slices::<f64>(&[b], &[]))), "not aligned");
        assert!(panics(|| drop(arena.slices::<f32>(&[slot(252, 2, Elem::Real)], &[]))), "beyond the end");
        assert!(panics(|| drop(arena.slices::<f32>(&[slot(4, usize::MAX / 2, Elem::Real)], &[]))), "overflow");
        assert!(panics(|| drop(arena.slices::<f32>(&[], &[slot(4, usize::MAX / 2, Elem::Real)]))), "overflow");
    }
}
