//! How a benchmark starts: what its command line asks for, or what is wrong with it.

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
};

/// Runs a benchmark as the command line asks for it; `None` asks for help.
pub(crate) fn launch<C>(
    choice: Result<Option<C>, String>,
    usage: &str,
    run: impl FnOnce(&C),
) -> ExitCode {
    match choice {
        Ok(Some(choice)) => run(&choice),
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
