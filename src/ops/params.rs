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

/// `v` as a kernel's parameter. Fails beyond 2^31 - 1.
pub(super) fn narrow(op: &str, v: usize) -> Result<u32> {
    match i32::try_from(v) {
        Ok(v) => Ok(v as u32),
        Err(_) => Err(Error::unsupported(op, format!("an extent or a stride of {v}, the most is 2^31 - 1"))),
    }
}
