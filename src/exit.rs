//! Every exit code, in one place; the man page and the README are held equal to it by a test.

/// How lease-exec ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// The command ended by itself with this status.
    Command(u8),
    /// This signal ended the command, or ended us while we waited.
    Signal(i32),
    /// Wrong usage or an unsafe configuration.
    Usage,
    /// The API server, or the store's directory, could not be reached, or refused our credentials,
    /// before `--wait` ran out.
    Unreachable,
    /// Somebody else holds the lease; the code is 75 unless `--conflict-exit-code` changes it.
    Conflict(u8),
    /// The API server forbids it.
    Forbidden,
    /// There is no usable configuration.
    Configuration,
    /// Leadership was lost and the tree is proven dead.
    Lost,
    /// The tree could not be proven dead.
    Survivors,
    /// lease-exec itself failed.
    Internal,
    /// The command can't be executed.
    NotExecutable,
    /// The command was not found.
    NotFound,
}

/// The default of `--conflict-exit-code`.
pub const CONFLICT: u8 = 75;

impl Exit {
    /// The code that the parent process sees. For a signal this is 128 + N, the code that a shell
    /// would show; where we are not PID 1 we die of the signal itself instead.
    pub fn code(self) -> u8 {
        match self {
            Self::Command(code) | Self::Conflict(code) => code,
            Self::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
            Self::Usage => 64,
            Self::Unreachable => 69,
            Self::Forbidden => 77,
            Self::Configuration => 78,
            Self::Lost => 79,
            Self::Survivors => 80,
            Self::Internal => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
        }
    }
}

/// The table that users read: the code, and when it is used.
pub const TABLE: &[(&str, &str)] = &[
    ("0 to 255", "the command's own"),
    (
        "128 + N",
        "signal N ended the command, or ended us while waiting",
    ),
    ("64", "wrong usage or an unsafe configuration"),
    (
        "69",
        "the API server, or the store's directory, could not be reached, or refused our credentials, before --wait ran out",
    ),
    (
        "75",
        "somebody else holds the lease (--conflict-exit-code changes it)",
    ),
    (
        "77",
        "the API server forbids it; the message holds the RBAC rule to add",
    ),
    (
        "78",
        "no usable configuration: of the cluster, its credentials (refused three times), the namespace, the lease (absent with --create never, damaged, or of coordinated leader election) or the store's directory",
    ),
    (
        "79",
        "leadership was lost and the command's tree is proven dead",
    ),
    (
        "80",
        "the tree could not be proven dead: the lease is not released",
    ),
    ("125", "lease-exec itself failed"),
    ("126", "the command can't be executed"),
    ("127", "the command was not found"),
];

#[cfg(test)]
mod tests {
    use super::{Exit, TABLE};

    #[test]
    fn every_code_of_our_own_is_in_the_table_once() {
        let ours = [
            Exit::Usage,
            Exit::Unreachable,
            Exit::Conflict(super::CONFLICT),
            Exit::Forbidden,
            Exit::Configuration,
            Exit::Lost,
            Exit::Survivors,
            Exit::Internal,
            Exit::NotExecutable,
            Exit::NotFound,
        ];
        for exit in ours {
            let code = exit.code().to_string();
            let rows = TABLE.iter().filter(|(shown, _)| *shown == code).count();
            assert_eq!(rows, 1, "{exit:?} has {rows} rows");
        }
        assert_eq!(TABLE.len(), ours.len() + 2);
    }

    #[test]
    fn a_signal_is_shown_as_a_shell_shows_it() {
        assert_eq!(Exit::Signal(15).code(), 143);
        assert_eq!(Exit::Signal(64).code(), 192);
    }
}
