//! The deadline, the timer that wakes the guard for it, and the kernel's timer that kills a process
//! that can't act on it.

use std::time::Duration;

use nix::{
    errno::Errno,
    sys::{
        signal::{SigEvent, SigevNotify, Signal},
        time::TimeSpec,
        timer::{Expiration, Timer, TimerSetTimeFlags},
        timerfd::{
            ClockId as WakeClock, Expiration as WakeExpiration, TimerFd, TimerFlags,
            TimerSetTimeFlags as WakeFlags,
        },
    },
    time::ClockId,
};

use crate::clock::Instant;

/// The moment at which the command's tree is killed unless a renewal has moved it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// When the write that this deadline rests on was sent.
    pub sent: Instant,
    /// How long after that SIGKILL is due.
    pub kill_after: Duration,
}

impl Deadline {
    /// The time left until SIGKILL is due, zero from then on.
    pub fn left(&self, now: Instant) -> Duration {
        self.kill_after.saturating_sub(now.held_since(self.sent))
    }

    /// The deadline to keep after `new` has been offered: a deadline that has passed is never
    /// moved, and one that has not is only ever moved forward.
    ///
    /// That holds also where somebody has shortened the duration of a held lease by hand, which is
    /// beyond what is promised. Front kills by the shorter duration as long as it is well, and its
    /// next renewal, sent at once, writes the full one again. The guard's deadline is for when front
    /// is not well, and so must not depend on the order in which front's orders come: whatever could
    /// bring it forward could be a stale one, and kill a command whose lease is renewed.
    pub(super) fn extended(self, new: Self, now: Instant) -> Self {
        let left = self.left(now);
        if !left.is_zero() && new.left(now) > left {
            new
        } else {
            self
        }
    }
}

/// How long to sleep on CLOCK_BOOTTIME before the clocks are compared again when `left` remains.
///
/// CLOCK_MONOTONIC_RAW, which counts as well, may run ahead of a slewed CLOCK_BOOTTIME by up to a
/// tenth. The last millisecond is slept through: a tenth of that is nothing.
pub(super) fn nap(left: Duration) -> Duration {
    if left < Duration::from_millis(1) {
        left
    } else {
        left / 8 * 7
    }
}

/// A timer that makes a descriptor readable; it counts time spent in suspend.
pub(super) struct Wake(TimerFd);

impl Wake {
    pub(super) fn new() -> Result<Self, Errno> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self(TimerFd::new(WakeClock::CLOCK_BOOTTIME, flags)?))
    }

    /// Becomes readable at this time of CLOCK_BOOTTIME, and not before.
    pub(super) fn set(&self, at: Duration) {
        let at = WakeExpiration::OneShot(TimeSpec::from_duration(at));
        // A descriptor of ours and a sane time can't be refused.
        let _ = self.0.set(at, WakeFlags::TFD_TIMER_ABSTIME);
    }

    /// Is not readable until it is set again.
    pub(super) fn unset(&self) {
        let _ = self.0.unset();
    }

    pub(super) fn descriptor(&self) -> &TimerFd {
        &self.0
    }
}

/// A kernel timer that SIGKILLs the process that made it, also when that is stopped, has all
/// signals blocked or sits in the cgroup v2 freezer.
///
/// It is not inherited by fork, and it has no effect on PID 1 of a PID namespace.
pub(super) struct Watchdog {
    timer: Timer,
    /// The time of CLOCK_BOOTTIME for which it is set.
    armed: Option<Duration>,
}

impl Watchdog {
    pub(super) fn new() -> Result<Self, Errno> {
        let event = SigEvent::new(SigevNotify::SigevSignal {
            signal: Signal::SIGKILL,
            si_value: 0,
        });
        Ok(Self {
            timer: Timer::new(ClockId::CLOCK_BOOTTIME, event)?,
            armed: None,
        })
    }

    /// Moves the killing to this time of CLOCK_BOOTTIME if that is later than the time it is set
    /// for, and not zero, which would disarm it.
    pub(super) fn push(&mut self, at: Duration) {
        if at.is_zero() || self.armed.is_some_and(|armed| at <= armed) {
            return;
        }
        let expiration = Expiration::OneShot(TimeSpec::from_duration(at));
        if self
            .timer
            .set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            .is_ok()
        {
            self.armed = Some(at);
        }
    }

    /// Never kills. Only for when nothing of the command lives.
    pub(super) fn disarm(&mut self) {
        if self.armed.is_none() {
            return;
        }
        let never = Expiration::OneShot(TimeSpec::from_duration(Duration::ZERO));
        let _ = self.timer.set(never, TimerSetTimeFlags::empty());
        self.armed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot: u64, raw: u64) -> Instant {
        Instant {
            boot: Duration::from_millis(boot),
            raw: Duration::from_millis(raw),
        }
    }

    fn deadline(sent: u64, kill_after: u64) -> Deadline {
        Deadline {
            sent: at(sent, sent),
            kill_after: Duration::from_millis(kill_after),
        }
    }

    #[test]
    fn the_faster_clock_decides_what_is_left() {
        let deadline = deadline(100, 1000);
        assert_eq!(deadline.left(at(300, 200)), Duration::from_millis(800));
        assert_eq!(deadline.left(at(200, 300)), Duration::from_millis(800));
        assert_eq!(deadline.left(at(5000, 200)), Duration::ZERO);
    }

    #[test]
    fn a_deadline_that_has_passed_is_not_extended() {
        let old = deadline(0, 1000);
        let new = deadline(900, 1000);
        assert_eq!(old.extended(new, at(999, 999)), new);
        assert_eq!(old.extended(new, at(1000, 999)), old);
        assert_eq!(old.extended(new, at(999, 1000)), old);
    }

    #[test]
    fn a_deadline_moves_only_forward() {
        let old = deadline(500, 1000);
        let late = deadline(0, 1000);
        assert_eq!(old.extended(late, at(600, 600)), old);
        assert_eq!(old.extended(old, at(600, 600)), old);
    }

    #[test]
    fn naps_end_before_a_clock_that_is_a_tenth_ahead_gets_there_and_are_few() {
        let mut left = Duration::from_secs(3600);
        let mut naps = 0;
        while left >= Duration::from_millis(1) {
            let slept = nap(left);
            assert!(slept.mul_f64(1.1) < left, "{slept:?} of {left:?}");
            left -= slept;
            naps += 1;
        }
        assert!(naps < 10, "{naps} naps");
        assert_eq!(nap(left), left, "the rest is slept through");
    }
}
