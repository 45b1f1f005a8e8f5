//! The parameters of a launch: their structs, and numbers that must fit them.

use crate::{Error, Result};

/// Declares structs that kernels take by value. The fields have the struct's visibility.
macro_rules! params {
    ($($(#[$doc:meta])* $vis:vis struct $name:ident { $($field:ident: $ty:ty),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $name {
            $($vis $field: $ty,)+
        }
    )+};
}
pub(crate) use params;

/// `numbers` as a kernel's parameters. Fails beyond 2^31 - 1.
pub(super) fn narrow<const N: usize>(op: &str, numbers: [usize; N]) -> Result<[u32; N]> {
    match numbers.iter().find(|&&number| number > i32::MAX as usize) {
        None => Ok(numbers.map(|number| number as u32)),
        Some(large) => {
            Err(Error::unsupported(op, format!("an extent, a stride or a grid of {large}, the most is 2^31 - 1")))
        }
    }
}
