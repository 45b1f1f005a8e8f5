//! Memory of a program on the CPU.
