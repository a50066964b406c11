use std::{
    ffi::OsString,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::{
        signal::{Signal, kill},
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
        wait::waitpid,
    },
    unistd::Pid,
};

use super::Guard;
use crate::{
    clock::Instant,
    signals::StopSignal,
    supervisor::{
        Audience, Command, Deadline, Forwarded, Inherited, Leftovers, Options, Privileges, Status,
        command::Exec,
        message::{Order, SIZE, Word},
        sys::{self, Forked},
    },
};

/// A real guard in a process of its own; the test is its front.
struct Bench {
    front: OwnedFd,
    guard: Pid,
}

impl Bench {
    /// A guard whose command is a shell script.
    fn new(script: &str) -> Self {
        let argv = ["sh", "-c", script].map(OsString::from);
        let command = Command::find(&argv).unwrap();
        let flags = SockFlag::SOCK_CLOEXEC;
        let (front, guards) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let guard = Guard {
            front: guards,
            inherited: Inherited::at_entry().unwrap(),
            exec: Exec::new(&command, 0),
            options: Options {
                kill_budget: Duration::from_secs(2),
                kin: 0,
                leftovers: Leftovers::End,
                audience: Audience::Command,
                privileges: Privileges::AsUsual,
                stop_signal: StopSignal::TERM,
            },
            tether: None,
            buffer: Guard::buffer(),
        };
        // There are other threads, tests like this one. The child has none of them, and as a guard it
        // does not allocate, so that it does not matter what they were about to do.
        match sys::fork().unwrap() {
            Forked::Child => {
                drop(front);
                guard.run(None, None)
            }
            Forked::Parent(pid) => Self {
                front,
                guard: Pid::from_raw(pid),
            },
        }
    }

    fn order(&self, order: Order) {
        let flags = MsgFlags::MSG_NOSIGNAL;
        send(self.front.as_raw_fd(), &order.encode(), flags).unwrap();
    }

    fn signal(&self, signal: i32) {
        self.order(Order::Signal(Forwarded {
            signal,
            sender: 0,
            from_terminal: false,
        }));
    }

    /// Orders the start, with so much left until the deadline.
    fn start(&self, left: Duration) {
        self.order(Order::Start(Deadline {
            sent: Instant::now(),
            kill_after: left,
        }));
    }

    /// What the guard says next.
    fn hear(&self) -> Word {
        let mut place = [PollFd::new(self.front.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut place, 30_000_u16), Ok(1), "it says nothing");
        let mut bytes = [0; SIZE];
        recv(self.front.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
        Word::decode(&bytes).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = kill(self.guard, Signal::SIGKILL);
        let _ = waitpid(self.guard, None);
    }
}

/// Longer than a test takes.
const MINUTE: Duration = Duration::from_secs(60);

const ENDING: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, 34];

#[test]
fn a_signal_that_ends_and_comes_before_the_start_cancels_it() {
    for signal in ENDING {
        let bench = Bench::new("exit 7");
        bench.signal(signal);
        bench.start(MINUTE);
        assert_eq!(bench.hear(), Word::Starting);
        assert_eq!(bench.hear(), Word::Cancelled(signal));
    }
}

#[test]
fn the_first_of_two_signals_cancels_the_start() {
    let bench = Bench::new("exit 7");
    bench.signal(libc::SIGINT);
    bench.signal(libc::SIGTERM);
    bench.start(MINUTE);
    assert_eq!(bench.hear(), Word::Starting);
    assert_eq!(bench.hear(), Word::Cancelled(libc::SIGINT));
}

#[test]
fn signals_that_do_not_end_do_not_cancel_the_start() {
    let bench = Bench::new("exit 7");
    for signal in [libc::SIGCONT, libc::SIGWINCH, libc::SIGURG] {
        bench.signal(signal);
    }
    bench.start(MINUTE);
    assert_eq!(bench.hear(), Word::Starting);
    assert!(matches!(bench.hear(), Word::Started(..)));
    assert!(matches!(bench.hear(), Word::Ended(Status::Exited(7), _)));
    assert_eq!(bench.hear(), Word::Empty);
}

#[test]
fn a_signal_after_the_start_is_the_commands() {
    let bench = Bench::new("exec sleep 7777");
    bench.start(MINUTE);
    bench.signal(libc::SIGTERM);
    assert_eq!(bench.hear(), Word::Starting);
    // It may arrive before the child has become the command.
    let said = [bench.hear(), bench.hear()];
    let is_started = |word: &Word| matches!(word, Word::Started(..));
    assert_eq!(said.iter().filter(|word| is_started(word)).count(), 1);
    assert!(said.contains(&Word::Forwarded(libc::SIGTERM)), "{said:?}");
    let ended = bench.hear();
    let is_its_death =
        matches!(ended, Word::Ended(Status::Signalled(signal), _) if signal == libc::SIGTERM);
    assert!(is_its_death, "{ended:?}");
    assert_eq!(bench.hear(), Word::Empty);
}

#[test]
fn nothing_starts_after_the_deadline() {
    let directory = tempfile::tempdir().unwrap();
    for (left, starts) in [
        (MINUTE, true),
        (Duration::from_nanos(1), false),
        (Duration::ZERO, false),
    ] {
        let ran = directory.path().join(format!("{left:?}"));
        let bench = Bench::new(&format!("touch {}", ran.display()));
        bench.start(left);
        assert_eq!(bench.hear(), Word::Starting);
        if starts {
            while bench.hear() != Word::Empty {}
        } else {
            assert_eq!(bench.hear(), Word::TooLate);
        }
        drop(bench);
        assert_eq!(ran.exists(), starts, "{left:?} left");
    }
}
