//! Finding the command, and all that execve needs, made before the guard is forked.

use std::{
    ffi::{CStr, CString, OsStr, OsString, c_char},
    io::Write as _,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    ptr,
};

use anyhow::{Result, ensure};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open},
    sys::stat::{Mode, SFlag, stat},
    unistd::{AccessFlags, faccessat, read},
};

/// A command that was found and can, as far as one can tell without doing it, be executed.
#[derive(Debug)]
pub struct Command {
    path: CString,
    arguments: Vec<CString>,
}

/// Why a command can't be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FindError {
    /// One sentence that names the command.
    pub message: String,
    /// Which of the two exit codes it is.
    pub kind: FindErrorKind,
}

/// What shells tell apart by exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindErrorKind {
    /// There is no such file (127).
    NotFound,
    /// There is one, but it can't be executed (126).
    NotExecutable,
}

impl FindError {
    /// What `errno`, from execve or from looking the file up, means for this file.
    fn new(path: &OsStr, errno: Errno) -> Self {
        let kind = match errno {
            Errno::ENOENT | Errno::ENOTDIR => FindErrorKind::NotFound,
            // EACCES, ENOEXEC, E2BIG, ETXTBSY, ELOOP and whatever else there is: the file exists.
            _ => FindErrorKind::NotExecutable,
        };
        Self {
            message: if path.is_empty() {
                "the command is empty".to_owned()
            } else {
                format!("can't execute {}: {}", path.display(), errno.desc())
            },
            kind,
        }
    }
}

impl std::fmt::Display for FindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for FindError {}

impl Command {
    /// Looks the command up as a shell would: a name with a slash in it is a path, any other is
    /// sought in `PATH`. To be called before anything is done that others can see.
    ///
    /// # Errors
    ///
    /// If there is no such file, or none that we may execute.
    pub fn find(argv: &[OsString]) -> Result<Self, FindError> {
        Self::find_in(argv, std::env::var_os("PATH").as_deref())
    }

    fn find_in(argv: &[OsString], search_path: Option<&OsStr>) -> Result<Self, FindError> {
        let name = argv.first().map_or(OsStr::new(""), OsString::as_os_str);
        let error = |errno| FindError::new(name, errno);
        let path = if name.as_bytes().contains(&b'/') {
            check(Path::new(name)).map_err(error)?;
            PathBuf::from(name)
        } else {
            search(name, search_path.unwrap_or(OsStr::new(DEFAULT_PATH))).map_err(error)?
        };
        let terminated =
            |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| error(Errno::EINVAL));
        Ok(Self {
            path: terminated(path.as_os_str())?,
            arguments: argv
                .iter()
                .map(|argument| terminated(argument))
                .collect::<Result<_, _>>()?,
        })
    }

    /// What to say when execve refused.
    pub(super) fn exec_error(&self, errno: Errno) -> FindError {
        let mut error = FindError::new(OsStr::from_bytes(self.path.as_bytes()), errno);
        // See execve(2). The file itself was there when it was looked up.
        error.message.push_str(match errno {
            Errno::ENOENT => " (or its interpreter)",
            Errno::ENOEXEC => " (has it a #! line?)",
            _ => "",
        });
        error
    }
}

/// Where commands are sought if `PATH` is not set; an unset one does not mean the current directory.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// As execvp(3): files that may not be executed are passed over and remembered, everything but
/// "not there" ends the search. An empty element is the current directory.
fn search(name: &OsStr, search_path: &OsStr) -> Result<PathBuf, Errno> {
    let mut failure = Errno::ENOENT;
    if name.is_empty() {
        return Err(failure);
    }
    for directory in search_path.as_bytes().split(|byte| *byte == b':') {
        let directory = if directory.is_empty() {
            b"."
        } else {
            directory
        };
        let path = Path::new(OsStr::from_bytes(directory)).join(name);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(Errno::EACCES) => failure = Errno::EACCES,
            Err(errno) => return Err(errno),
        }
    }
    Err(failure)
}

/// Whether execve would take this file, as far as its inode tells.
fn check(path: &Path) -> Result<(), Errno> {
    let found = stat(path)?;
    if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(Errno::EACCES);
    }
    faccessat(
        nix::fcntl::AT_FDCWD,
        path,
        AccessFlags::X_OK,
        AtFlags::AT_EACCESS,
    )
}

/// The arguments of execve, in memory that the guard need not add to.
pub(super) struct Exec {
    path: CString,
    argv: Vec<*const c_char>,
    /// The same for `/bin/sh`, which runs the path as a script.
    shell_argv: Vec<*const c_char>,
    /// Owns what `argv` points to.
    _arguments: Vec<CString>,
    /// Ours as we were given it, then free places, then at least one null at the end.
    environ: Vec<*const c_char>,
    /// The text of added variables, which `environ` points to; never moved.
    added: Box<[u8]>,
    /// Which variable is `LISTEN_PID` with our own pid, see sd_listen_fds(3): the descriptors that
    /// it speaks of become the command's.
    listen_pid: Option<usize>,
    listen_pid_text: Box<[u8; 32]>,
}

impl Exec {
    /// Prepares the command with the environment of this process, whose pid at entry it was told.
    pub(super) fn new(command: &Command, entry_pid: i32) -> Self {
        let arguments = command.arguments.clone();
        let mut argv: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
        argv.push(ptr::null());
        let path = command.path.clone();
        let script = [SHELL.as_ptr(), path.as_ptr()];
        let shell_argv = script.into_iter().chain(argv.iter().skip(1).copied());
        let shell_argv = shell_argv.collect();
        let mut environ = environ();
        let listen_pid = format!("LISTEN_PID={entry_pid}");
        let listen_pid = environ
            .iter()
            .position(|entry| text(*entry) == listen_pid.as_bytes());
        environ.resize(environ.len() + VARIABLES + 1, ptr::null());
        Self {
            path,
            argv,
            shell_argv,
            _arguments: arguments,
            environ,
            added: vec![0; ENVIRONMENT_ROOM].into_boxed_slice(),
            listen_pid,
            listen_pid_text: Box::new([0; 32]),
        }
    }

    /// Adds variables, `NAME=VALUE` each with a zero byte behind it, in the place of those that
    /// have the same names. Allocates nothing; what does not fit has been refused by
    /// [`environment`].
    pub(super) fn add(&mut self, variables: &[u8]) {
        let Some(room) = self.added.get_mut(..variables.len()) else {
            return;
        };
        room.copy_from_slice(variables);
        let mut rest = &*room;
        while let Ok(variable) = CStr::from_bytes_until_nul(rest) {
            rest = rest.get(variable.count_bytes() + 1..).unwrap_or_default();
            let variable_name = name(variable.to_bytes());
            let place = self
                .environ
                .iter()
                .take_while(|entry| !entry.is_null())
                .position(|entry| name(text(*entry)) == variable_name)
                .or_else(|| self.environ.iter().position(|entry| entry.is_null()));
            // The last null must stay.
            if let Some(place) = place
                && place + 1 < self.environ.len()
                && let Some(entry) = self.environ.get_mut(place)
            {
                *entry = variable.as_ptr();
            }
        }
    }

    /// Becomes the command; comes back only with the reason why it could not.
    pub(super) fn exec(&mut self) -> Errno {
        if let Some(entry) = self
            .listen_pid
            .and_then(|place| self.environ.get_mut(place))
        {
            let mut room: &mut [u8] = &mut *self.listen_pid_text;
            if write!(room, "LISTEN_PID={}\0", std::process::id()).is_ok() {
                *entry = self.listen_pid_text.as_ptr().cast();
            }
        }
        let errno = self.execute(&self.path, &self.argv);
        // As execvp(3), on every C library.
        if errno == Errno::ENOEXEC && is_text(&self.path) {
            self.execute(SHELL, &self.shell_argv);
        }
        errno
    }

    fn execute(&self, path: &CStr, argv: &[*const c_char]) -> Errno {
        // SAFETY: all three are terminated as execve wants it, and live as long as `self`, or, for
        // the environment we were given, as long as the process.
        unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), self.environ.as_ptr()) };
        Errno::last()
    }
}

/// What runs a script without a `#!` line.
const SHELL: &CStr = c"/bin/sh";

/// Whether a file can be a script: its first block, as far as the kernel looks at it, holds no zero
/// byte, as a binary for another machine does.
fn is_text(path: &CStr) -> bool {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut block = [0; 256];
    open(path, flags, Mode::empty())
        .and_then(|file| read(file, &mut block))
        .is_ok_and(|length| !block.iter().take(length).any(|byte| *byte == 0))
}

/// How many variables can be added.
const VARIABLES: usize = 32;

/// How many bytes they can have together.
pub(super) const ENVIRONMENT_ROOM: usize = 32 * 1024;

/// Writes variables as [`Exec::add`] reads them.
pub(super) fn environment(variables: &[(&str, String)]) -> Result<Vec<u8>> {
    let mut block = Vec::new();
    for (name, value) in variables {
        let is_name = !name.is_empty() && !name.contains(['=', '\0']);
        ensure!(
            is_name && !value.contains('\0'),
            "the variable {name} can't be put into an environment"
        );
        block.extend_from_slice(name.as_bytes());
        block.push(b'=');
        block.extend_from_slice(value.as_bytes());
        block.push(0);
    }
    ensure!(
        variables.len() <= VARIABLES && block.len() <= ENVIRONMENT_ROOM,
        "the command's additional environment is too large"
    );
    Ok(block)
}

/// The environment as the kernel gave it to us, also entries without `=`.
fn environ() -> Vec<*const c_char> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let mut entries = Vec::new();
    // SAFETY: there is one thread, and nothing in this program changes the environment: the array
    // is the kernel's, ends with a null pointer and lives as long as the process.
    unsafe {
        let mut at = environ;
        while !at.is_null() && !(*at).is_null() {
            entries.push(*at);
            at = at.add(1);
        }
    }
    entries
}

fn text(entry: *const c_char) -> &'static [u8] {
    // SAFETY: entries of the environment, and what replaces them, are terminated strings that live
    // until exec; callers keep the slice no longer than the comparison.
    unsafe { CStr::from_ptr(entry) }.to_bytes()
}

fn name(variable: &[u8]) -> &[u8] {
    variable
        .split(|byte| *byte == b'=')
        .next()
        .unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn file(path: &Path, mode: u32) {
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn find(name: &str, search_path: &str) -> Result<Vec<u8>, FindErrorKind> {
        Command::find_in(&[name.into()], Some(OsStr::new(search_path)))
            .map(|command| command.path.into_bytes())
            .map_err(|error| error.kind)
    }

    #[test]
    fn path_is_walked_past_what_cannot_be_executed() {
        let directory = tempfile::tempdir().unwrap();
        let absent = directory.path().join("absent");
        let [one, two, three] = ["one", "two", "three"].map(|name| directory.path().join(name));
        for each in [&one, &two, &three] {
            fs::create_dir(each).unwrap();
        }
        fs::create_dir(one.join("tool")).unwrap();
        file(&two.join("tool"), 0o644);
        file(&three.join("tool"), 0o755);
        let [one, two, three] = [one, two, three].map(|path| path.display().to_string());

        let found = find("tool", &format!("{}:{one}:{two}:{three}", absent.display()));
        assert_eq!(found, Ok(format!("{three}/tool").into_bytes()));
        let found = find("tool", &format!("{one}:{two}"));
        assert_eq!(found, Err(FindErrorKind::NotExecutable));
        assert_eq!(find("other", &three), Err(FindErrorKind::NotFound));
        assert_eq!(find("", &three), Err(FindErrorKind::NotFound));
    }

    #[test]
    fn a_name_with_a_slash_is_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        file(Path::new(&path("good")), 0o755);
        file(Path::new(&path("plain")), 0o644);
        std::os::unix::fs::symlink("loop", path("loop")).unwrap();

        assert_eq!(find(&path("good"), ""), Ok(path("good").into_bytes()));
        for (name, kind) in [
            ("plain", FindErrorKind::NotExecutable),
            ("loop", FindErrorKind::NotExecutable),
            (".", FindErrorKind::NotExecutable),
            ("missing", FindErrorKind::NotFound),
            ("good/child", FindErrorKind::NotFound),
        ] {
            assert_eq!(find(&path(name), ""), Err(kind), "{name}");
        }
    }

    #[test]
    fn a_refused_execution_is_explained() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("script");
        file(&path, 0o755);
        let command = Command::find_in(&[path.into()], None).unwrap();
        let said = |errno| command.exec_error(errno).message;
        assert!(said(Errno::ENOENT).ends_with(" (or its interpreter)"));
        assert!(said(Errno::ENOEXEC).ends_with(" (has it a #! line?)"));
        assert!(said(Errno::EACCES).ends_with("script: Permission denied"));

        let empty = Command::find_in(&["".into()], None).unwrap_err();
        assert_eq!(empty.message, "the command is empty");
        assert_eq!(empty.kind, FindErrorKind::NotFound);
    }

    #[test]
    fn an_added_variable_takes_the_place_of_one_with_its_name() {
        let command = Command::find_in(&["/proc/self/exe".into()], None).unwrap();
        let mut exec = Exec::new(&command, 0);
        let before = exec.environ.iter().filter(|entry| !entry.is_null()).count();
        let block = environment(&[("PATH", "/a".into()), ("NEW_ONE", "b=c".into())]).unwrap();
        exec.add(&block);
        let after: Vec<_> = exec
            .environ
            .iter()
            .take_while(|entry| !entry.is_null())
            .map(|entry| text(*entry))
            .collect();
        assert_eq!(after.len(), before + 1);
        let paths = after.iter().filter(|entry| name(entry) == b"PATH");
        assert_eq!(paths.collect::<Vec<_>>(), [b"PATH=/a"]);
        assert!(after.contains(&b"NEW_ONE=b=c".as_slice()));
    }

    #[test]
    fn an_environment_that_does_not_fit_is_refused() {
        let large = "x".repeat(ENVIRONMENT_ROOM);
        assert!(environment(&[("A", large)]).is_err());
        assert!(environment(&vec![("A", String::new()); VARIABLES + 1]).is_err());
        assert!(environment(&[("A=B", String::new())]).is_err());
        assert!(environment(&[("A", "\0".into())]).is_err());
    }
}
