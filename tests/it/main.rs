//! The whole program, on real parts.

mod image;
