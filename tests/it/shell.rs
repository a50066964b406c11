//! lease-exec as scripts use it, and who of a world is still alive.

use std::fs;

use crate::{
    wait::{LIMIT, wait_until},
    world::{Invocation, LEASE, World},
};

impl World<'static> {
    /// A bash script. In it, `$LX` is lease-exec with this world's lease up to `--`, silent unless
    /// something is wrong. Whatever it starts can be found by [`World::processes`].
    pub(crate) fn shell(&self, script: &str) -> Invocation {
        self.script_of("bash", &["-c", script])
    }

    /// The same with another program in the place of bash.
    pub(crate) fn script_of(&self, program: &str, args: &[&str]) -> Invocation {
        self.program(program)
            .args(args)
            .env("LX", self.lx())
            .env(MARK, self.path())
    }

    /// What `$LX` is.
    pub(crate) fn lx(&self) -> String {
        format!(
            "{} -q --lease {LEASE} --store file:{} --",
            env!("CARGO_BIN_EXE_lease-exec"),
            self.store().display()
        )
    }

    /// The variable by which processes of this world are known, whoever their parents are.
    pub(crate) fn mark(&self) -> (&'static str, String) {
        (MARK, self.path().display().to_string())
    }

    /// All processes that a script of this world has started and that live, lease-exec's own too.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let (name, value) = self.mark();
        let mark = format!("{name}={value}").into_bytes();
        let entries = fs::read_dir("/proc").expect("/proc can be read");
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                // Nobody's environment can be read after their end.
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment
                    .split(|byte| *byte == 0)
                    .any(|entry| entry == mark)
            })
            .filter_map(Process::read)
            .collect()
    }

    /// Waits until this many processes of this world have this name, and returns their pids.
    #[track_caller]
    pub(crate) fn wait_for_processes(&self, name: &str, count: usize) -> Vec<i32> {
        wait_until(format!("{count} are called {name}"), LIMIT, || {
            let processes = self.processes();
            let named = processes.iter().filter(|process| process.name == name);
            let pids: Vec<i32> = named.map(|process| process.pid).collect();
            (pids.len() == count).then_some(pids)
        })
    }

    /// Asserts that none of its processes is left.
    #[track_caller]
    pub(crate) fn assert_nobody_is_left(&self) {
        let left = self.processes();
        assert!(left.is_empty(), "these live on: {left:?}");
    }

    /// Waits until none of its processes is left.
    #[track_caller]
    pub(crate) fn wait_until_nobody_is_left(&self) {
        self.wait_until_nobody_but(&[]);
    }

    /// Waits until none but these of its processes are left.
    #[track_caller]
    pub(crate) fn wait_until_nobody_but(&self, pids: &[i32]) {
        wait_until(format!("nobody but {pids:?} is left"), LIMIT, || {
            let processes = self.processes();
            let all_are_known = processes.iter().all(|process| pids.contains(&process.pid));
            all_are_known.then_some(())
        });
    }
}

const MARK: &str = "WORLD_OF_THE_TEST";

/// A living process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) name: String,
    /// Its parent's pid.
    pub(crate) parent: i32,
    /// `T` is stopped.
    pub(crate) state: char,
    pub(crate) group: i32,
}

impl Process {
    /// `None` if there is no such process, or it is a zombie.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, tail) = stat.rsplit_once(") ")?;
        let mut fields = tail.split(' ');
        let process = Self {
            pid,
            name: head.split_once('(')?.1.to_owned(),
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
        };
        (!matches!(process.state, 'Z' | 'X')).then_some(process)
    }
}
