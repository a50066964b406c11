//! The guard's talk with front.

use std::os::fd::AsRawFd;

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
    unistd::{Pid as NixPid, getpgid, getppid},
};

use crate::{
    clock::Instant,
    signals::{self, Received},
};

use super::{
    super::{
        Audience, Group,
        message::{Forwarded, Order, Word},
        sys::{self, Pid},
        tree::Process,
    },
    Phase, Watch,
};

impl Watch {
    pub(super) fn read_orders(&mut self) {
        let mut buffer = std::mem::take(&mut self.guard.buffer);
        // What is left makes the next sleep end at once.
        for _ in 0..ORDERS_AT_ONCE {
            if self.alone {
                break;
            }
            let socket = self.guard.front.as_raw_fd();
            match recv(socket, &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => self.lose_front(),
                Ok(length) => {
                    // The guard may have been stopped since the last look.
                    let now = Instant::now();
                    self.check_deadline(now);
                    let message = buffer.get(..length).unwrap_or_default();
                    if let Some((order, rest)) = Order::decode(message) {
                        self.obey(order, rest, now);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => self.lose_front(),
            }
        }
        self.guard.buffer = buffer;
    }

    /// Front is dead, or has said that it is done by closing its end.
    fn lose_front(&mut self) {
        self.alone = true;
        if self.phase == Phase::Waiting {
            self.phase = Phase::Over;
        } else {
            self.begin_killing(Instant::now());
        }
    }

    fn obey(&mut self, order: Order, rest: &[u8], now: Instant) {
        match order {
            Order::Start(deadline) => {
                if self.phase == Phase::Waiting {
                    self.start(deadline, rest, now);
                }
            }
            Order::Extend(new) => {
                if let Some(deadline) = self.deadline {
                    self.deadline = Some(deadline.extended(new, now));
                    if !self.is_done() {
                        self.push_watchdog(now);
                    }
                }
            }
            Order::Signal(forwarded) => self.forward(forwarded),
            Order::Terminate => {
                self.signal_command(self.guard.options.stop_signal.number());
                self.continue_whom_it_asks();
            }
            Order::Kill => self.begin_killing(now),
        }
    }

    fn forward(&mut self, forwarded: Forwarded) {
        let Forwarded {
            signal,
            sender,
            from_terminal,
        } = forwarded;
        let is_asked = self.guard.options.stop_signal.is_asked_by(Received {
            signal,
            from_terminal,
        });
        if self.phase == Phase::Waiting && (is_asked || signals::ends_by_default(signal)) {
            self.cancelled_by.get_or_insert(signal);
        }
        if self.is_of_the_tree(sender) {
            return;
        }
        let signal = match signal {
            libc::SIGTSTP => return self.undo_stop(),
            libc::SIGTERM => self.guard.options.stop_signal.number(),
            other => other,
        };
        // The terminal has told front's whole group. Whether the command is in that is asked anew
        // each time: it may put itself into another, as timeout(1) does.
        let told = if from_terminal {
            getpgid(Some(getppid())).ok().map(NixPid::as_raw)
        } else {
            None
        };
        match self.command {
            Some(command) if told == Some(self.present_group(command)) => return,
            Some(_) => self.signal_command(signal),
            None if self.phase == Phase::Running => self.signal_leftovers(signal, told),
            None => return,
        }
        if is_asked {
            self.continue_whom_it_asks();
            self.tell(Word::Forwarded(signal));
        }
    }

    /// The terminal has stopped front's whole group, and front refuses.
    fn undo_stop(&self) {
        match (self.group, self.command) {
            (Group::Shared(_), Some(command)) => self.continue_group(command),
            (Group::Shared(_), None) => self.signal_leftovers(libc::SIGCONT, None),
            (Group::Own, _) => {}
        }
    }

    /// A signal that the command sends to its supervisor must not come back to it.
    fn is_of_the_tree(&self, sender: Pid) -> bool {
        sender != 0
            && self.command.is_some()
            && self
                .tree
                .as_ref()
                .is_some_and(|tree| tree.is_descendant(sender))
    }

    /// Signals the command if it is not reaped yet, and with `--group` its group with it.
    fn signal_command(&self, signal: i32) {
        let Some(command) = self.command else {
            return self.signal_leftovers(signal, None);
        };
        match (self.guard.options.audience, self.group) {
            (_, Group::Own) if signal == libc::SIGCONT => self.continue_group(command),
            // The others in it are the caller's, and may be lease-execs: if each continued the others
            // when it is continued, there would be no end of it.
            (_, Group::Shared(_)) if signal == libc::SIGCONT => self.signal_ours(command, signal),
            (Audience::Group, Group::Shared(_)) => self.signal_ours(command, signal),
            // The leader is not reaped, so the group's number is still the command's.
            (Audience::Group, Group::Own) => drop(sys::kill(-command, signal)),
            (Audience::Command, _) => drop(sys::kill(command, signal)),
        }
    }

    /// What asks to end is followed by SIGCONT, because it would pend for ever in a stopped process.
    /// That goes to the whole group: one member of a stopped pipeline alone would hang the job.
    fn continue_whom_it_asks(&self) {
        let Some(command) = self.command else {
            return self.signal_leftovers(libc::SIGCONT, None);
        };
        match (self.guard.options.audience, self.group) {
            (Audience::Command, Group::Own) => drop(sys::kill(command, libc::SIGCONT)),
            (Audience::Group, _) | (_, Group::Shared(_)) => self.continue_group(command),
        }
    }

    /// Signals the command and those of its tree who are in its group.
    fn signal_ours(&self, command: Pid, signal: i32) {
        let group = self.present_group(command);
        let is_meant = |process: &Process| process.group == group && process.pid != command;
        let _ = sys::kill(command, signal);
        if let Some(tree) = &self.tree {
            tree.signal_those(signal, is_meant);
        }
    }

    /// Where those whom the command left behind are awaited, they are what is supervised: all but
    /// those in a group that has the signal already.
    fn signal_leftovers(&self, signal: i32, told: Option<Pid>) {
        if self.phase != Phase::Running {
            return;
        }
        if let Some(tree) = &self.tree {
            tree.signal_those(signal, |process| told != Some(process.group));
        }
    }

    pub(super) fn continue_group(&self, command: Pid) {
        let group = self.first_group(command);
        let _ = sys::kill(-group, libc::SIGCONT);
        let present = self.present_group(command);
        // The kernel takes -1 for everybody, and 0, for a group that it can't name here, for ours.
        if present != group && present > 1 {
            let _ = sys::kill(-present, libc::SIGCONT);
        }
    }

    /// The group that the command was started in.
    fn first_group(&self, command: Pid) -> Pid {
        match self.group {
            Group::Own => command,
            Group::Shared(group) => group,
        }
    }

    /// The group that the command, which is not reaped, is in now.
    pub(super) fn present_group(&self, command: Pid) -> Pid {
        let present = getpgid(Some(NixPid::from_raw(command)));
        present.map_or_else(|_| self.first_group(command), NixPid::as_raw)
    }

    /// Tells front something that it may miss if it does not read.
    pub(super) fn tell(&self, word: Word) -> bool {
        let sent = self.say(word);
        // Whoever is gone needs no telling.
        self.alone || !matches!(sent, Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM))
    }

    /// The same for a word on which something depends.
    pub(super) fn say(&self, word: Word) -> Result<(), Errno> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.guard.front.as_raw_fd(), &word.encode(), flags).map(drop)
    }

    /// Tells front something that it must hear: the end of the command, and that nothing lives.
    pub(super) fn tell_surely(&mut self, word: Word) {
        self.flush();
        if (self.unsent != [None; 2] || !self.tell(word))
            && let Some(place) = self.unsent.iter_mut().find(|place| place.is_none())
        {
            *place = Some(word);
        }
    }

    pub(super) fn flush(&mut self) {
        while let [Some(word), next] = self.unsent {
            if !self.tell(word) {
                return;
            }
            self.unsent = [next, None];
        }
    }
}

/// How many messages are read before the processes are looked at again.
const ORDERS_AT_ONCE: usize = 64;
