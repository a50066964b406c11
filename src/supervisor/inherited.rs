//! What this process was started with, recorded before Rust's runtime changes it.
//!
//! The runtime ignores SIGPIPE and opens `/dev/null` on closed standard descriptors before `main`.
//! The command must get what we were given, so a function in `.init_array`, which the C library
//! runs before the runtime, takes a record.

use std::{cell::UnsafeCell, hint, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

use super::sys::{self, Disposition, SIGNALS, SignalSet};

/// The signal mask, the ignored signals and the closed standard descriptors at entry.
#[derive(Clone, Copy)]
pub struct Inherited {
    mask: SignalSet,
    /// Bit `signal - 1` is set for an ignored signal.
    ignored: u64,
    /// Which of the descriptors 0 to 2 were closed.
    closed: [bool; 3],
}

impl Inherited {
    /// Returns the record.
    ///
    /// # Errors
    ///
    /// If the C library did not run `.init_array`, so that there is none.
    pub fn at_entry() -> Result<Self> {
        // The linker must keep the object file that holds the hook, which nothing else names.
        hint::black_box(&HOOK);
        // SAFETY: written once by the hook, before main and so before there is a second thread.
        let recorded = unsafe { *RECORD.0.get() };
        recorded.context("the state at entry was not recorded before main")
    }

    /// Whether a signal was ignored at entry.
    pub fn ignores(&self, signal: i32) -> bool {
        self.ignored & bit(signal) != 0
    }

    /// Gives the calling process, which is about to become the command, what we were given:
    /// dispositions, closed descriptors, and last the mask, because a signal that is pending may
    /// act as soon as it is unblocked.
    pub(super) fn restore(&self) {
        self.restore_dispositions();
        for (descriptor, closed) in (0..).zip(self.closed) {
            if closed {
                sys::close_range(descriptor, descriptor);
            }
        }
        self.mask.replace_mask();
    }

    /// Lets a program that this process starts have the signal mask and the ignored signals that we
    /// were given. Otherwise it would have all those blocked that we read ourselves, and could not
    /// end a child of its own with SIGTERM.
    pub fn pass_on(self, program: &mut Command) {
        let restore = move || {
            self.restore_dispositions();
            self.mask.replace_mask();
            Ok(())
        };
        // SAFETY: between fork and exec it makes system calls, and touches no memory but its own.
        unsafe { program.pre_exec(restore) };
    }

    fn restore_dispositions(&self) {
        for signal in SIGNALS {
            let disposition = if self.ignores(signal) {
                Disposition::Ignore
            } else {
                Disposition::Default
            };
            sys::set_disposition(signal, disposition);
        }
    }

    fn take() -> Self {
        let mask = SignalSet::all().replace_mask();
        mask.replace_mask();
        Self {
            mask,
            ignored: SIGNALS
                .filter(|signal| sys::is_ignored(*signal))
                .map(bit)
                .fold(0, |all, one| all | one),
            closed: [0, 1, 2].map(|descriptor| !sys::is_open(descriptor)),
        }
    }
}

fn bit(signal: i32) -> u64 {
    let shift = u32::try_from(signal - 1).unwrap_or(u32::MAX);
    1_u64.checked_shl(shift).unwrap_or(0)
}

struct Record(UnsafeCell<Option<Inherited>>);

// SAFETY: written only by the hook, before there is a second thread.
unsafe impl Sync for Record {}

static RECORD: Record = Record(UnsafeCell::new(None));

// SAFETY: `.init_array` holds pointers to C functions. glibc passes argc, argv and envp, musl
// nothing; a function without parameters suits both.
#[used]
#[unsafe(link_section = ".init_array")]
static HOOK: extern "C" fn() = record;

extern "C" fn record() {
    // SAFETY: the C library calls this once, before main, on the only thread.
    unsafe { *RECORD.0.get() = Some(Inherited::take()) };
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_record_was_taken_before_rusts_runtime_ignored_sigpipe() {
        let inherited = Inherited::at_entry().unwrap();
        assert!(sys::is_ignored(libc::SIGPIPE), "the runtime ignores it");
        // cargo and the shells start programs with the default.
        assert!(!inherited.ignores(libc::SIGPIPE));
    }

    #[test]
    fn every_signal_has_its_own_bit() {
        let all = SIGNALS.map(bit).fold(0, |all, one| all ^ one);
        assert_eq!(all, u64::MAX);
        assert_eq!(bit(0) | bit(65), 0);
    }
}
