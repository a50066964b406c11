//! Processes: the guard, starting, signalling, reaping, killing and proving the tree empty.
