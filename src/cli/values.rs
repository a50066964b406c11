//! Values that are the same for several options.

use std::{str::FromStr as _, time::Duration};

use nix::sys::signal::Signal;

use crate::signals::StopSignal;

/// A duration, or what one looks like.
pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    humantime::parse_duration(text).map_err(|_| "it is not a duration, such as 5s or 1m30s")
}

/// A signal, as a name with or without SIG or as a number, by which a command can be asked to end.
pub(super) fn stop_signal(text: &str) -> Result<StopSignal, &'static str> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = || Signal::from_str(&format!("SIG{name}")).map(|signal| signal as i32);
    let number = match text.parse() {
        Ok(number) => Some(number),
        Err(_) => real_time(name).or_else(|| named().ok()),
    };
    let number = number.filter(|number| (1..=64).contains(number));
    let number = number.ok_or("it is not a signal, such as WINCH, RTMIN+3 or 15")?;
    StopSignal::new(number).ok_or("no program can be asked to end by it")
}

/// A real-time signal by its name. The numbers are those of glibc: musl begins with 35, but those who
/// name signals in images and units count as glibc does.
fn real_time(name: &str) -> Option<i32> {
    let first_and_last = 34..=64;
    let offset = |rest: &str| match rest {
        "" => Some(0),
        rest => rest.parse::<i32>().ok(),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => first_and_last.start() + offset(rest)?,
        (None, Some(rest)) => first_and_last.end() + offset(rest)?,
        (None, None) => return None,
    };
    first_and_last.contains(&number).then_some(number)
}
