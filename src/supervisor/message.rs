//! What front and guard say to each other: one datagram per message, fixed in size but for the
//! environment that follows `Start`.
//!
//! Both ends are the same binary, so there is no version and the byte order is the machine's.

use std::time::Duration;

use crate::clock::Instant;

use super::{Means, Status, sys::Pid, timer::Deadline, tree::Survivor};

/// The bytes of a message without what follows it.
pub(super) const SIZE: usize = 64;

/// A message as it is sent.
pub(super) type Bytes = [u8; SIZE];

/// What front tells the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Start the command, unless it was cancelled or this deadline has passed. Followed by the
    /// additional environment: `NAME=VALUE`, each with a zero byte behind it.
    Start(Deadline),
    /// A renewal moves the deadline.
    Extend(Deadline),
    /// This signal arrived at front.
    Signal(Forwarded),
    /// The stop signal and SIGCONT to the command.
    Terminate,
    /// SIGKILL to the whole tree.
    Kill,
}

/// A signal that front got, for the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forwarded {
    /// Its number.
    pub(crate) signal: i32,
    /// Who sent it; 0 if it was the kernel or is outside our PID namespace.
    pub(crate) sender: Pid,
    /// The terminal made it, so it went to the whole foreground group.
    pub(crate) from_terminal: bool,
}

impl Order {
    pub(super) fn encode(&self) -> Bytes {
        let mut writer = Writer::default();
        match *self {
            Self::Start(deadline) => writer.byte(0).deadline(deadline),
            Self::Extend(deadline) => writer.byte(1).deadline(deadline),
            Self::Signal(forwarded) => writer
                .byte(2)
                .int(forwarded.signal)
                .int(forwarded.sender)
                .byte(u8::from(forwarded.from_terminal)),
            Self::Terminate => writer.byte(3),
            Self::Kill => writer.byte(4),
        };
        writer.bytes
    }

    /// The order and what follows it; `None` if this is not an order.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (fixed, rest) = bytes.split_first_chunk::<SIZE>()?;
        let mut reader = Reader(fixed);
        let order = match reader.byte()? {
            0 => Self::Start(reader.deadline()?),
            1 => Self::Extend(reader.deadline()?),
            2 => Self::Signal(Forwarded {
                signal: reader.int()?,
                sender: reader.int()?,
                from_terminal: reader.byte()? != 0,
            }),
            3 => Self::Terminate,
            4 => Self::Kill,
            // Only this file writes messages.
            _ => return None,
        };
        Some((order, rest))
    }
}

/// What the guard tells front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The order to start was read; what came of it follows.
    Starting,
    /// The command runs, and these means are there to kill its tree.
    Started(Pid, Means),
    /// execve refused with this errno; nothing runs.
    ExecFailed(i32),
    /// There was no process to be had, with this errno; nothing runs.
    StartFailed(i32),
    /// This signal came before the start; nothing runs.
    Cancelled(i32),
    /// The deadline had passed before the start; nothing runs.
    TooLate,
    /// This signal, which asks to end, was passed on.
    Forwarded(i32),
    /// The command was stopped by this signal, and continued by the guard.
    Stopped(i32),
    /// The command ended so, and others of its tree live, which are awaited.
    Awaiting(Status),
    /// The command ended; others of its tree may live.
    Ended(Status, Instant),
    /// The same, but beyond the deadline, at which the guard kills the tree.
    Overdue(Status),
    /// What the command left behind is being ended: so many processes, or 0 if they can't be counted.
    Draining(i32),
    /// The guard is alive and killing.
    Killing,
    /// One process that SIGKILL has not ended.
    Survivor(Survivor),
    /// That was all of them, or as many as are told.
    Survivors,
    /// Nothing of the command lives.
    Empty,
}

impl Word {
    pub(super) fn encode(&self) -> Bytes {
        let mut writer = Writer::default();
        match *self {
            Self::Starting => writer.byte(0),
            Self::Started(pid, means) => writer
                .byte(1)
                .int(pid)
                .byte(u8::from(means.leaf))
                .byte(u8::from(means.tether))
                .byte(u8::from(means.timer))
                .byte(u8::from(means.proc)),
            Self::ExecFailed(errno) => writer.byte(2).int(errno),
            Self::StartFailed(errno) => writer.byte(3).int(errno),
            Self::Cancelled(signal) => writer.byte(4).int(signal),
            Self::TooLate => writer.byte(5),
            Self::Stopped(signal) => writer.byte(6).int(signal),
            Self::Ended(Status::Exited(code), at) => writer.byte(7).byte(code).instant(at),
            Self::Ended(Status::Signalled(signal), at) => writer.byte(8).int(signal).instant(at),
            Self::Killing => writer.byte(9),
            Self::Survivor(survivor) => writer
                .byte(10)
                .int(survivor.pid)
                .byte(survivor.state)
                .int(survivor.uid.cast_signed())
                .chunk(survivor.comm)
                .chunk(survivor.waits_in),
            Self::Survivors => writer.byte(11),
            Self::Empty => writer.byte(12),
            Self::Awaiting(Status::Exited(code)) => writer.byte(13).byte(code),
            Self::Awaiting(Status::Signalled(signal)) => writer.byte(14).int(signal),
            Self::Draining(count) => writer.byte(15).int(count),
            Self::Forwarded(signal) => writer.byte(16).int(signal),
            Self::Overdue(Status::Exited(code)) => writer.byte(17).byte(code),
            Self::Overdue(Status::Signalled(signal)) => writer.byte(18).int(signal),
        };
        writer.bytes
    }

    /// The word; `None` if this is not one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes.first_chunk::<SIZE>()?);
        Some(match reader.byte()? {
            0 => Self::Starting,
            1 => {
                let pid = reader.int()?;
                let mut flag = || Some(reader.byte()? != 0);
                let means = Means {
                    leaf: flag()?,
                    tether: flag()?,
                    timer: flag()?,
                    proc: flag()?,
                };
                Self::Started(pid, means)
            }
            2 => Self::ExecFailed(reader.int()?),
            3 => Self::StartFailed(reader.int()?),
            4 => Self::Cancelled(reader.int()?),
            5 => Self::TooLate,
            6 => Self::Stopped(reader.int()?),
            7 => Self::Ended(Status::Exited(reader.byte()?), reader.instant()?),
            8 => Self::Ended(Status::Signalled(reader.int()?), reader.instant()?),
            9 => Self::Killing,
            10 => Self::Survivor(Survivor {
                pid: reader.int()?,
                state: reader.byte()?,
                uid: reader.int()?.cast_unsigned(),
                comm: reader.chunk()?,
                waits_in: reader.chunk()?,
            }),
            11 => Self::Survivors,
            12 => Self::Empty,
            13 => Self::Awaiting(Status::Exited(reader.byte()?)),
            14 => Self::Awaiting(Status::Signalled(reader.int()?)),
            15 => Self::Draining(reader.int()?),
            16 => Self::Forwarded(reader.int()?),
            17 => Self::Overdue(Status::Exited(reader.byte()?)),
            18 => Self::Overdue(Status::Signalled(reader.int()?)),
            // Only this file writes messages.
            _ => return None,
        })
    }
}

struct Writer {
    bytes: Bytes,
    used: usize,
}

impl Default for Writer {
    fn default() -> Self {
        Self {
            bytes: [0; SIZE],
            used: 0,
        }
    }
}

impl Writer {
    fn chunk<const N: usize>(&mut self, chunk: [u8; N]) -> &mut Self {
        if let Some(place) = self.bytes.get_mut(self.used..self.used + N) {
            place.copy_from_slice(&chunk);
            self.used += N;
        }
        self
    }

    fn byte(&mut self, byte: u8) -> &mut Self {
        self.chunk([byte])
    }

    fn int(&mut self, int: i32) -> &mut Self {
        self.chunk(int.to_ne_bytes())
    }

    /// Nanoseconds in 64 bits last for 584 years.
    fn duration(&mut self, duration: Duration) -> &mut Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.chunk(nanos.to_ne_bytes())
    }

    fn instant(&mut self, instant: Instant) -> &mut Self {
        self.duration(instant.boot).duration(instant.raw)
    }

    fn deadline(&mut self, deadline: Deadline) -> &mut Self {
        self.instant(deadline.sent).duration(deadline.kill_after)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*chunk)
    }

    fn byte(&mut self) -> Option<u8> {
        self.chunk().map(|[byte]| byte)
    }

    fn int(&mut self) -> Option<i32> {
        self.chunk().map(i32::from_ne_bytes)
    }

    fn duration(&mut self) -> Option<Duration> {
        self.chunk()
            .map(u64::from_ne_bytes)
            .map(Duration::from_nanos)
    }

    fn instant(&mut self) -> Option<Instant> {
        Some(Instant {
            boot: self.duration()?,
            raw: self.duration()?,
        })
    }

    fn deadline(&mut self) -> Option<Deadline> {
        Some(Deadline {
            sent: self.instant()?,
            kill_after: self.duration()?,
        })
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Instant = Instant {
        boot: Duration::new(123_456, 789_012_345),
        raw: Duration::new(98_765, 1),
    };

    #[test]
    fn every_order_comes_out_as_it_went_in() {
        let deadline = Deadline {
            sent: AT,
            kill_after: Duration::from_nanos(12_970_000_001),
        };
        let signal = |from_terminal| {
            Order::Signal(Forwarded {
                signal: 64,
                sender: 4_194_304,
                from_terminal,
            })
        };
        let orders = [
            Order::Start(deadline),
            Order::Extend(deadline),
            signal(false),
            signal(true),
            Order::Terminate,
            Order::Kill,
        ];
        for order in orders {
            let mut bytes = order.encode().to_vec();
            bytes.extend_from_slice(b"rest");
            assert_eq!(Order::decode(&bytes), Some((order, b"rest".as_slice())));
        }
    }

    #[test]
    fn every_word_comes_out_as_it_went_in() {
        let means = |which: usize| Means {
            leaf: which == 0,
            tether: which == 1,
            timer: which == 2,
            proc: which == 3,
        };
        let words = [
            Word::Starting,
            Word::Started(77, means(0)),
            Word::Started(77, means(1)),
            Word::Started(77, means(2)),
            Word::Started(77, means(3)),
            Word::ExecFailed(8),
            Word::StartFailed(11),
            Word::Cancelled(15),
            Word::TooLate,
            Word::Forwarded(15),
            Word::Stopped(20),
            Word::Awaiting(Status::Exited(255)),
            Word::Awaiting(Status::Signalled(34)),
            Word::Ended(Status::Exited(255), AT),
            Word::Ended(Status::Signalled(34), AT),
            Word::Overdue(Status::Exited(255)),
            Word::Overdue(Status::Signalled(34)),
            Word::Draining(4_194_304),
            Word::Killing,
            Word::Survivor(Survivor {
                pid: 77_123,
                state: b'D',
                uid: u32::MAX - 1,
                comm: *b"sixteen bytes ok",
                waits_in: *b"and thirty-two bytes are ok, too",
            }),
            Word::Survivors,
            Word::Empty,
        ];
        for word in words {
            assert_eq!(Word::decode(&word.encode()), Some(word));
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(Order::decode(&[0; SIZE - 1]), None);
        assert_eq!(Order::decode(&[99; SIZE]), None);
        assert_eq!(Word::decode(&[]), None);
        assert_eq!(Word::decode(&[99; SIZE]), None);
    }
}
