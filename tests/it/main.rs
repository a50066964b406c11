//! The whole program, on real parts: real processes, a real API server, a real container runtime.

mod bad_input;
mod client_go;
mod command;
mod connection;
mod containment;
mod control_plane;
mod documents;
mod exit_status;
mod failure;
mod hand_over;
mod image;
mod inheritance;
mod init;
mod leftovers;
mod listener;
mod loss;
mod outages;
mod processes;
mod proxy;
mod pty;
mod shell;
mod signals;
mod store_contract;
mod terminal;
mod wait;
mod world;
