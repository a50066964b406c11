//! A terminal of a test's own, with a session in it.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    process::{Child, Command, ExitStatus},
};

use nix::{
    fcntl::OFlag,
    pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt},
    unistd::tcgetpgrp,
};

use crate::{
    wait::{LIMIT, try_wait_until},
    world::World,
};

/// A terminal. Dropping it hangs it up, and kills whoever leads its session.
pub(crate) struct Terminal {
    /// Until it is hung up.
    master: Option<PtyMaster>,
    /// Its name for those in it.
    path: String,
    session: Child,
    shown: Vec<u8>,
    /// How much of that has been waited for.
    seen: usize,
}

impl Terminal {
    /// Runs a bash script in it, as the leader of the terminal's session. `$LX` is as in
    /// [`World::shell`].
    pub(crate) fn script(world: &World<'static>, script: &str) -> Self {
        Self::session(world, &["setsid", "--ctty", "bash", "-c", script])
    }

    /// Runs a bash in it that is used by hand.
    pub(crate) fn interactive(world: &World<'static>) -> Self {
        let bash = ["bash", "--norc", "--noprofile", "--noediting", "-i"];
        let mut terminal = Self::session(world, &[&["setsid", "--ctty"], &bash[..]].concat());
        terminal.wait_until_it_shows(PROMPT);
        terminal
    }

    /// Runs a program that makes the terminal its controlling one, as setsid(1) does.
    pub(crate) fn session(world: &World<'static>, argv: &[&str]) -> Self {
        // A copy in another test's processes would keep the terminal from being hung up.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let master = posix_openpt(flags).expect("a terminal can be made");
        grantpt(&master).expect("it is ours");
        unlockpt(&master).expect("it can be unlocked");
        let path = ptsname_r(&master).expect("it has a name");
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(&path)
            .expect("it can be opened");
        let again = |file: &File| file.try_clone().expect("a descriptor can be copied");
        let mut command = Command::new(argv[0]);
        world.take_in(&mut command);
        let (mark, value) = world.mark();
        let session = command
            .args(&argv[1..])
            .env("LX", world.lx())
            .env("PS1", PROMPT)
            .env(mark, value)
            .stdin(again(&slave))
            .stdout(again(&slave))
            .stderr(slave)
            .spawn()
            .expect("the session can be started");
        Self {
            master: Some(master),
            path,
            session,
            shown: Vec::new(),
            seen: 0,
        }
    }

    /// Presses keys.
    pub(crate) fn type_in(&mut self, keys: &str) {
        let master = self.master.as_mut().expect("not hung up yet");
        master
            .write_all(keys.as_bytes())
            .expect("the terminal takes a few keys");
    }

    /// Gives it another size, as when its window is dragged.
    pub(crate) fn resize(&self) {
        let stty = Command::new("stty")
            .args(["-F", &self.path, "rows", "41"])
            .status();
        assert!(stty.expect("stty can be run").success());
    }

    /// Waits until it shows this text behind the one that was waited for last.
    #[track_caller]
    pub(crate) fn wait_until_it_shows(&mut self, text: &str) {
        let found = try_wait_until(LIMIT, || {
            self.read();
            let rest = &self.shown[self.seen..];
            let at = rest
                .windows(text.len())
                .position(|part| part == text.as_bytes())?;
            Some(self.seen + at + text.len())
        });
        match found {
            Some(end) => self.seen = end,
            None => panic!(
                "waited in vain until {text:?} is shown behind\n{}\nin\n{}",
                String::from_utf8_lossy(&self.shown[..self.seen]),
                String::from_utf8_lossy(&self.shown)
            ),
        }
    }

    /// All that it has shown so far.
    pub(crate) fn shown(&mut self) -> String {
        self.read();
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// How often this has been shown so far.
    pub(crate) fn count(&mut self, text: &str) -> usize {
        self.shown().matches(text).count()
    }

    /// The group that keys like Ctrl-C go to.
    pub(crate) fn foreground(&self) -> i32 {
        tcgetpgrp(self.master.as_ref().expect("not hung up yet"))
            .expect("a session has the terminal")
            .as_raw()
    }

    /// The leader of the session.
    pub(crate) fn leader(&self) -> i32 {
        i32::try_from(self.session.id()).expect("a pid is an i32")
    }

    /// Waits until the leader of the session ends.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let status = try_wait_until(LIMIT, || {
            self.read();
            self.session.try_wait().expect("it can be waited for")
        });
        status.unwrap_or_else(|| panic!("the session does not end:\n{}", self.shown()))
    }

    /// Takes the terminal away, as when its window is closed.
    pub(crate) fn hang_up(&mut self) {
        self.master = None;
    }

    fn read(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(master) = &mut self.master {
            match master.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => self.shown.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nothing yet, or (EIO) nobody has it open any more.
                Err(_) => return,
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.hang_up();
        let _ = self.session.kill();
        let _ = self.session.wait();
    }
}

/// What an interactive bash shows when it is ready.
pub(crate) const PROMPT: &str = "ready> ";
