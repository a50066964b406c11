//! How a benchmark starts, and that nothing of it stays, however it ends.
//!
//! Must not: change anything that is measured.

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use crate::{janitor::Janitor, surroundings};

/// Runs a benchmark as the command line asks for it; `None` asks for help.
pub(crate) fn launch<C>(
    choice: Result<Option<C>, String>,
    usage: &str,
    run: impl FnOnce(&C),
) -> ExitCode {
    match choice {
        Ok(Some(choice)) => {
            // SAFETY: nobody has started a thread.
            let _janitor = unsafe {
                surroundings::settle();
                Janitor::hire()
            };
            run(&choice);
        }
        Ok(None) => writeln!(stdout(), "{usage}").expect("stdout can be written"),
        Err(problem) => {
            // An error would have no place to be told.
            let _ = writeln!(stderr(), "{problem}, see -- --help");
            return ExitCode::from(BAD_USAGE);
        }
    }
    ExitCode::SUCCESS
}

/// EX_USAGE of sysexits(3head).
const BAD_USAGE: u8 = 64;
