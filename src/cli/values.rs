//! Values that are the same for several options.

use std::time::Duration;

/// A duration, or what one looks like.
pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    humantime::parse_duration(text).map_err(|_| "it is not a duration, such as 5s or 1m30s")
}

/// The value of a variable that stands for a flag.
pub(super) fn switch(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("it is neither true nor false"),
    }
}

/// The value of a variable that stands for a flag which may be given more than once.
pub(super) fn count(text: &str) -> Result<u8, &'static str> {
    text.parse()
        .map_err(|_| "it is not how often, such as 1 or 2")
}

pub(super) fn exit_code(text: &str) -> Result<u8, &'static str> {
    text.parse().map_err(|_| "it is not a number from 0 to 255")
}
