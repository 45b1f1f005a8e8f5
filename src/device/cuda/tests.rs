//! The CUDA device over a driver that is not there, and over a pretended one.
