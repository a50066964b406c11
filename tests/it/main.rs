//! The whole program, on real parts.

mod control_plane;
mod image;
mod store_contract;
mod wait;
