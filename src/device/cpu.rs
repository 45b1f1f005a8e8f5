//! The CPU: a program's memory, matrix products and wide vectors, with the few `unsafe` blocks that the CPU path needs.

mod arena;
mod gemm;
mod matrix;
mod product;
mod vectorized;

pub use self::arena::{Arena, Elements, HostMut, HostRef, Slot};
pub use self::gemm::gemm;
pub use self::matrix::Matrix;
pub use self::product::has_fast_products;
pub use self::vectorized::vectorized;
