//! What goes wrong, where, and for how long: storms of faults, and calms in between.

use std::time::Duration;

use super::{
    clocks::{RATE_ERROR, Rates, SLEW},
    guard::State,
    node::{Cut, Pause},
    profile::micros,
    server::{Put, Writer},
    summary::Fault,
    wire::FIRST,
    world::{Happening, MILLISECOND, SECOND, Service, World},
};
use crate::{
    election::{Create, Event},
    lease::{Identity, Record},
};

const MINUTE: u64 = 60 * SECOND;

/// How many of a hundred faults are aimed at the holder.
const AT_HOLDER: u64 = 60;

impl World {
    // === Storm and calm ===

    pub(super) fn begin_storm(&mut self, number: u32) {
        if number > 0 {
            self.check_gap();
        }
        self.watcher.settled_at = None;
        self.storm = true;
        self.note(format_args!("a storm begins"));
        let length = self.random.between(5 * MINUTE, 20 * MINUTE);
        self.schedule(length, Happening::Calm);
        self.schedule(SECOND, Happening::Fault);
        let rest = self.longest_silence() + 2 * MINUTE;
        let number = number + 1;
        self.schedule(length + rest, Happening::Storm { number });
    }

    /// Ends all that is wrong.
    pub(super) fn calm(&mut self) {
        self.storm = false;
        self.note(format_args!("a calm begins"));
        self.service = Service::Up;
        self.server.terminating = false;
        for index in 0..self.nodes.len() {
            self.nodes[index].cut = Cut::default();
            if self.nodes[index].is_paused() {
                let number = self.nodes[index].pauses;
                self.resume(index, number);
            }
        }
        let may_create = |create: &Create| *create != Create::Never;
        let first = &self.nodes[0].plan.create;
        if self.server.stored().is_none() && !may_create(first) {
            self.make_by_hand(Record::default());
        }
        self.await_running(self.now);
    }

    pub(super) fn heal(&mut self, index: usize, number: u32) {
        if self.nodes[index].cuts == number {
            self.nodes[index].cut = Cut::default();
            self.note(format_args!("node {index}: connected again"));
        }
    }

    // === One fault ===

    pub(super) fn fault(&mut self) {
        if !self.storm {
            return;
        }
        let after = self.random.below(self.plan.pause * 2) + MILLISECOND;
        self.schedule(after, Happening::Fault);
        let aimed = self.random.below(100) < AT_HOLDER;
        let index = match self.holder() {
            Some(holder) if aimed => holder,
            _ => self.random.index(self.nodes.len()),
        };
        if self.is_tight() {
            return self.cut(index);
        }
        match self.random.below(100) {
            0..14 => self.cut(index),
            14..36 => self.pause_somehow(index),
            36..53 => self.die_somehow(index),
            53..57 => self.step_wall_clock(index),
            57..62 => self.change_rates(index),
            62..68 => self.signal(index),
            68..70 => self.make_unkillable(index),
            70..80 => self.disturb_service(),
            80..83 => self.disturb_watches(),
            83..86 => self.edit_label(),
            _ if self.plan.deletes() => self.meddle(),
            _ => self.cut(index),
        }
    }

    fn lease_of(&self, index: usize) -> u64 {
        micros(self.nodes[index].plan.timing.lease_duration)
    }

    /// A length that matters beside a lease duration.
    fn length(&mut self, index: usize) -> u64 {
        let lease = self.lease_of(index);
        match self.random.below(4) {
            0 => self.random.below(lease / 4),
            3 => self.random.below(lease * 4),
            _ => self.random.below(lease * 3 / 2),
        }
    }

    fn cut(&mut self, index: usize) {
        let both = Cut {
            outgoing: true,
            incoming: true,
        };
        let (fault, cut) = match self.random.below(3) {
            _ if self.is_tight() => (Fault::CutBothWays, both),
            0 => (
                Fault::CutOneWayOut,
                Cut {
                    incoming: false,
                    ..both
                },
            ),
            1 => (
                Fault::CutOneWayIn,
                Cut {
                    outgoing: false,
                    ..both
                },
            ),
            _ => (Fault::CutBothWays, both),
        };
        self.count(fault);
        self.note(format_args!("node {index}: {fault:?}"));
        let length = if self.is_tight() {
            self.lease_of(index) + 2 * SECOND
        } else {
            self.length(index)
        };
        let node = &mut self.nodes[index];
        node.cut = cut;
        node.cuts += 1;
        let number = node.cuts;
        self.schedule(
            length,
            Happening::Heal {
                node: index,
                number,
            },
        );
    }

    fn pause_somehow(&mut self, index: usize) {
        let (fault, pause) = match self.random.below(11) {
            0..4 => (Fault::NodePaused, Pause::Node),
            4..8 => (Fault::FrontPaused, Pause::Front),
            // The clocks of such a node are honest in no combination.
            _ if self.plan.slews && !self.plan.slews_in_suspend() => {
                (Fault::NodePaused, Pause::Node)
            }
            _ => (Fault::Suspended, Pause::Suspend),
        };
        if self.nodes[index].is_paused() {
            return;
        }
        self.count(fault);
        let length = self.length(index);
        self.pause(index, pause, length);
    }

    fn die_somehow(&mut self, index: usize) {
        match self.random.below(17) {
            0..10 => self.kill_front(index),
            10..13 => self.kill_guard(index),
            _ => self.switch_off(index),
        }
    }

    fn kill_front(&mut self, index: usize) {
        if self.nodes[index].election.is_none() || self.nodes[index].is_frozen() {
            return;
        }
        let life = self.nodes[index].life;
        self.count(Fault::FrontKilled);
        self.note(format_args!("node {index}: the front is killed"));
        self.nodes[index].end();
        self.kill_orphan(index, life);
        self.begin_again(index, life);
    }

    fn kill_guard(&mut self, index: usize) {
        let life = self.nodes[index].life;
        let frozen = self.nodes[index].is_frozen();
        let budget = micros(self.nodes[index].plan.timing.kill_budget);
        let Some(tree) = self.tree_of(index, life) else {
            return;
        };
        if tree.state != State::Running || frozen || tree.killed {
            return;
        }
        let until = tree.unkillable_until;
        // The kernel kills the command, and front everything else.
        tree.killed = true;
        self.count(Fault::GuardKilled);
        self.note(format_args!("node {index}: the guard is killed"));
        let at = until.max(self.now + self.random.below(budget / 2 + 1));
        self.schedule_at(at, Happening::GuardFound { node: index, life });
    }

    fn switch_off(&mut self, index: usize) {
        self.count(Fault::PowerLost);
        self.note(format_args!("node {index}: loses its power"));
        let life = self.nodes[index].life;
        self.trees.retain(|tree| tree.node != index);
        self.watcher.last_alive = self.now;
        let clocks = self.new_clocks();
        let node = &mut self.nodes[index];
        node.end();
        node.pause = None;
        node.clocks = clocks;
        self.begin_again(index, life);
    }

    fn begin_again(&mut self, index: usize, life: u32) {
        let after = self.random.below(20 * SECOND);
        self.schedule(after, Happening::Begin { node: index, life });
    }

    fn step_wall_clock(&mut self, index: usize) {
        self.count(Fault::WallClockStepped);
        let sign = self.random.pick(&[-1, 1]);
        self.nodes[index].clocks.step_wall(sign * 3_600_000_000);
        self.note(format_args!("node {index}: the wall clock steps"));
    }

    fn change_rates(&mut self, index: usize) {
        if self.nodes[index].pause == Some(Pause::Suspend) {
            return;
        }
        self.count(Fault::ClockRateChanged);
        let mut rates: Rates = self.new_rates();
        if self.plan.slews {
            rates.boot = if self.plan.slews_in_suspend() && self.random.happens(5_000) {
                self.random.pick(&[-1, 1]) * i64::from(SLEW)
            } else {
                self.random.around_zero(SLEW)
            };
            rates.raw = self.random.around_zero(RATE_ERROR);
        }
        let now = self.now;
        self.nodes[index].clocks.set_rates(now, rates);
        self.note(format_args!("node {index}: {rates:?}"));
        self.reset_guards(index);
    }

    fn signal(&mut self, index: usize) {
        let (signal, ends) = self
            .random
            .pick(&[(15, true), (15, true), (2, true), (10, false)]);
        self.count(Fault::Signalled);
        self.note(format_args!("node {index}: signal {signal}"));
        self.tell(index, Event::Signalled { signal, ends });
    }

    fn make_unkillable(&mut self, index: usize) {
        let life = self.nodes[index].life;
        let until = self.now + self.random.below(3 * MINUTE);
        let Some(tree) = self.tree_of(index, life) else {
            return;
        };
        if tree.state == State::Running && !tree.killed {
            tree.unkillable_until = until;
            self.count(Fault::CommandUnkillable);
            self.note(format_args!("node {index}: the command can't be killed"));
        }
    }

    fn disturb_service(&mut self) {
        if self.service != Service::Up {
            return;
        }
        let fault = match self.random.below(10) {
            0..4 => {
                let until = self.now + self.random.between(2 * SECOND, 10 * SECOND);
                self.service = Service::Stalled { until };
                self.schedule_at(until, Happening::ServiceBack);
                Fault::EtcdStall
            }
            4..7 => {
                self.service = Service::Down;
                let length = self.random.between(SECOND, 40 * SECOND);
                self.schedule(length, Happening::ServiceBack);
                self.end_watches();
                Fault::Outage
            }
            _ => {
                self.service = Service::Restarting;
                let length = self.random.between(2 * SECOND, 10 * SECOND);
                self.schedule(length, Happening::ServiceBack);
                self.end_watches();
                Fault::RollingRestart
            }
        };
        self.count(fault);
        self.note(format_args!("{fault:?}"));
    }

    fn disturb_watches(&mut self) {
        self.server.skip(self.random.below(50));
        if self.random.happens(5_000) {
            self.server.compact();
            self.note(format_args!("the events are compacted"));
        }
        self.count(Fault::WatchEnded);
        self.end_watches();
    }

    // === By hand ===

    fn edit_label(&mut self) {
        if self.server.stored().is_some() {
            self.count(Fault::LabelEdited);
            self.note(format_args!("somebody edits a label"));
            self.server.edit(self.now, Writer::Editor, |_| {});
            self.publish();
        }
    }

    /// Deletes or edits the lease.
    fn meddle(&mut self) {
        let choice = self.random.below(if self.plan.edits() { 20 } else { 10 });
        if self.server.stored().is_none() {
            if choice < 5 && !self.server.terminating {
                self.count(Fault::LeaseMadeAgain);
                self.make_by_hand(Record::default());
            }
            return;
        }
        let seconds = Duration::from_secs(self.random.between(1, 60));
        let now = self.now;
        let fault = match choice {
            0..6 => {
                self.server.delete();
                Fault::LeaseDeleted
            }
            6..9 => {
                self.server.delete();
                self.publish();
                self.make_by_hand(Record::default());
                Fault::LeaseMadeAgain
            }
            9 => {
                self.server.delete();
                self.server.terminating = true;
                let length = self.random.below(20 * SECOND);
                self.schedule(length, Happening::NamespaceBack);
                Fault::NamespaceTerminating
            }
            10..12 => {
                let holder = Identity::new("somebody-else");
                let edit = |record: &mut Record| record.holder = holder;
                self.server.edit(now, Writer::Editor, edit);
                Fault::HolderEdited
            }
            12..14 => {
                let edit = |record: &mut Record| record.holder = None;
                self.server.edit(now, Writer::Editor, edit);
                Fault::HolderRemoved
            }
            14..17 => {
                let edit = |record: &mut Record| record.duration = Some(seconds);
                self.server.edit(now, Writer::Editor, edit);
                Fault::DurationEdited
            }
            17 | 18 => {
                let edit = |record: &mut Record| record.duration = None;
                self.server.edit(now, Writer::Editor, edit);
                Fault::DurationRemoved
            }
            _ => {
                let edit = |record: &mut Record| record.renew_time = None;
                self.server.edit(now, Writer::Stranger, edit);
                Fault::RenewTimeEdited
            }
        };
        self.count(fault);
        self.note(format_args!("by hand: {fault:?}"));
        self.touched_by_hand();
        self.publish();
    }

    fn make_by_hand(&mut self, record: Record) {
        self.note(format_args!("somebody makes the lease"));
        let put = Put {
            uid: None,
            version: None,
            record,
            by: Writer::Stranger,
        };
        self.server.put(self.now, FIRST, put);
        self.touched_by_hand();
        self.publish();
    }
}
