//! What lies between the nodes and the server: requests, answers and watches, and how they fail.

use std::{rc::Rc, time::Duration};

use super::{
    history::{Shown, ShownChange},
    node::{Watch, failed},
    profile::Profile,
    server::{Put, Replica, Status, Writer, revision},
    summary::Fault,
    world::{Happening, MILLISECOND, SECOND, Service, World},
};
use crate::{
    clock::Instant,
    election::{Event, Reply, RequestId},
    lease::{Change, Failure, FailureKind, Identity, Outcome, Version, Write},
};

/// A request on its way.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) node: usize,
    pub(super) life: u32,
    pub(super) id: RequestId,
    /// `None` reads.
    pub(super) write: Option<Write>,
    /// When the election asked for it: a term counts from there.
    pub(super) sent: Instant,
    /// The same in true time.
    pub(super) sent_at: u64,
    /// Whose it is, if it writes.
    pub(super) identity: Option<Identity>,
}

/// What becomes of a request that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    AnswerLost,
    AnswerLate(u64),
    /// It is carried out, and answered with an error.
    ErrorAfterCommit,
    /// It is answered with an error, and not carried out.
    Refused(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Unauthorized,
    Forbidden,
    TooManyRequests { seconds: u64 },
    Unavailable,
}

/// How long a watch lasts before the server ends it, at most.
const WATCH: u64 = 60 * SECOND;

/// How long a silent watch lasts before the client gives it up, at most.
const SILENCE: u64 = 65 * SECOND;

impl World {
    // === Requests ===

    pub(super) fn send(
        &mut self,
        index: usize,
        id: RequestId,
        write: Option<Write>,
        sent: Instant,
    ) {
        self.check_request(index, write.as_ref());
        self.summary.requests += 1;
        let writes = write.is_some();
        self.await_answer(index, id, writes);
        let node = &self.nodes[index];
        let request = Box::new(Request {
            node: index,
            life: node.life,
            id,
            write,
            sent,
            sent_at: self.now,
            identity: writes.then(|| node.identity.clone()),
        });
        let is_cut = node.cut.outgoing;
        self.note_request(&request);
        if is_cut {
            return self.note(format_args!(
                "node {index}: {id:?} is lost: the node is cut off"
            ));
        }
        let after = self.latency();
        if !self.storm {
            let fate = Fate::Answered;
            return self.schedule(after, Happening::Arrive { request, fate });
        }
        let chances = self.plan.chances;
        if self.random.happens(chances.request_lost) {
            self.note(format_args!("node {index}: {id:?} is lost"));
            return self.count(Fault::RequestLost);
        }
        if writes && self.plan.lateness > 0 && self.random.happens(chances.write_late) {
            self.count(Fault::WriteLate);
            let after = self.random.below(self.plan.lateness);
            let fate = Fate::AnswerLost;
            self.note(format_args!(
                "node {index}: {id:?} will arrive {after} us late, and its answer be lost"
            ));
            return self.schedule(after, Happening::Arrive { request, fate });
        }
        let fate = self.fate(index);
        self.schedule(after, Happening::Arrive { request, fate });
    }

    /// How a request fares in a storm.
    fn fate(&mut self, index: usize) -> Fate {
        let chances = self.plan.chances;
        if self.random.happens(chances.answer_lost) {
            self.count(Fault::AnswerLost);
            return Fate::AnswerLost;
        }
        if self.random.happens(chances.answer_late) {
            self.count(Fault::AnswerLate);
            let limit = self.nodes[index].plan.timing.request_timeout;
            let late = self.random.below(super::profile::micros(limit) * 3 / 2);
            return Fate::AnswerLate(late);
        }
        if self.random.happens(chances.error_after_commit) {
            self.count(Fault::ErrorAfterCommit);
            return Fate::ErrorAfterCommit;
        }
        if self.random.happens(chances.refused) {
            return Fate::Refused(self.refusal());
        }
        Fate::Answered
    }

    fn refusal(&mut self) -> Refusal {
        let (fault, refusal) = match self.random.below(12) {
            0 => (Fault::Unauthorized401, Refusal::Unauthorized),
            1 => (Fault::Forbidden403, Refusal::Forbidden),
            2..5 => {
                let seconds = self.random.pick(&[0, 1, 5, 30, 600]);
                let refusal = Refusal::TooManyRequests { seconds };
                (Fault::TooManyRequests429, refusal)
            }
            5..7 => (Fault::InternalError500, Refusal::Unavailable),
            7..10 => (Fault::Unavailable503, Refusal::Unavailable),
            _ => (Fault::Timeout504, Refusal::Unavailable),
        };
        self.count(fault);
        refusal
    }

    pub(super) fn arrive(&mut self, request: Box<Request>, fate: Fate) {
        match self.service {
            Service::Up => self.serve(&request, fate),
            Service::Stalled { until } => {
                let (index, id) = (request.node, request.id);
                self.note(format_args!(
                    "node {index}: {id:?} waits: the API server stands still"
                ));
                let at = until + self.random.below(200 * MILLISECOND);
                self.schedule_at(at, Happening::Arrive { request, fate });
            }
            // Either a refused connection, or nothing at all.
            Service::Down if self.random.happens(5_000) => {
                let refused = Fate::Refused(Refusal::Unavailable);
                self.serve(&request, refused);
            }
            Service::Down => {
                let (index, id) = (request.node, request.id);
                self.note(format_args!(
                    "node {index}: {id:?} is lost: the API server is away"
                ));
            }
            Service::Restarting => {
                let fate = match self.random.below(4) {
                    0 => Fate::Refused(Refusal::TooManyRequests { seconds: 5 }),
                    1 => Fate::ErrorAfterCommit,
                    2 => Fate::Refused(Refusal::Unavailable),
                    _ => fate,
                };
                self.serve(&request, fate);
            }
        }
    }

    fn serve(&mut self, request: &Request, fate: Fate) {
        let writes = request.write.is_some();
        let refused = match fate {
            Fate::Refused(refusal) => Some(refusal.failure()),
            _ => None,
        };
        let mut reply = match (refused, &request.write) {
            (Some(failure), _) => failed(writes, failure),
            (None, None) => {
                let replica = self.any_replica();
                let claim = self.server.read(self.now, replica);
                self.check_read(claim.as_ref());
                Reply::Read(Ok(claim))
            }
            (None, Some(write)) => self.write(request, write),
        };
        let (index, id) = (request.node, request.id);
        self.note(format_args!(
            "node {index}: {id:?} arrives ({fate:?}): {}",
            Shown(&reply)
        ));
        let mut after = self.latency();
        match fate {
            Fate::AnswerLost => return,
            Fate::AnswerLate(late) => after += late,
            Fate::ErrorAfterCommit => reply = failed(writes, Refusal::Unavailable.failure()),
            Fate::Answered | Fate::Refused(_) => {}
        }
        let (node, life, id) = (request.node, request.life, request.id);
        let reply = Box::new(reply);
        self.schedule(
            after,
            Happening::Answer {
                node,
                life,
                id,
                reply,
            },
        );
    }

    /// A store's write, as a PUT.
    fn write(&mut self, request: &Request, write: &Write) -> Reply {
        let replica = self.any_replica();
        let before = self.before(request);
        let put = Put {
            uid: write.base.as_ref().map(|base| base.uid.clone()),
            version: write.base.as_ref().map(|base| base.version.clone()),
            record: write.record.clone(),
            by: Writer::LeaseExec,
        };
        match self.server.put(self.now, replica, put) {
            Status::Created | Status::Updated => {
                self.on_commit(request, before);
                self.publish();
            }
            Status::Unchanged => self.violate("a write changes nothing"),
            Status::Conflict | Status::Invalid => {
                self.summary.conflicts += 1;
                return Reply::Written(Ok(Outcome::Conflict));
            }
            Status::Terminating => {
                let failure = failure(FailureKind::NoNamespace, "the namespace is being deleted");
                return Reply::Written(Err(failure));
            }
        }
        let claim = self.server.read(self.now, replica);
        let claim = claim.expect("it was just written");
        Reply::Written(Ok(Outcome::Written(claim)))
    }

    pub(super) fn on_answer(&mut self, index: usize, life: u32, id: RequestId, reply: Reply) {
        let node = &self.nodes[index];
        if node.life != life {
            return self.note(format_args!(
                "node {index}: the answer to {id:?} of life {life} finds another"
            ));
        }
        if node.cut.incoming {
            return self.note(format_args!(
                "node {index}: the answer to {id:?} is lost: the node is cut off"
            ));
        }
        self.deliver(index, id, reply);
    }

    /// Hands in an answer, or that there was none in time.
    pub(super) fn deliver(&mut self, index: usize, id: RequestId, reply: Reply) {
        self.note(format_args!(
            "node {index}: {id:?} is answered: {}",
            Shown(&reply)
        ));
        let node = &mut self.nodes[index];
        if !node.is_paused() {
            let awaited = node.request.is_some_and(|request| request.id == id);
            node.record.answered = awaited.then_some(id);
            if awaited {
                node.request = None;
            }
        }
        self.tell(index, Event::Reply(id, reply));
    }

    fn latency(&mut self) -> u64 {
        let longest = self.plan.latency;
        // Mostly much shorter than the longest.
        let share = self.random.pick(&[1, 2, 4, 8, 8]);
        10 + self.random.below(longest / share)
    }

    // === Watches ===

    pub(super) fn watch(&mut self, index: usize, version: &Version) {
        let name = self.next_name();
        self.nodes[index].watch = Some(Watch {
            name,
            open: false,
            frozen: false,
            last: self.now,
        });
        let node = &self.nodes[index];
        if node.cut.outgoing || node.cut.incoming || self.service == Service::Down {
            let after = self.random.between(SECOND, 5 * SECOND);
            let why = "no connection";
            let happening = Happening::EndWatch {
                node: index,
                watch: name,
                why,
            };
            return self.schedule(after, happening);
        }
        let after = self.latency();
        let version = revision(version);
        let happening = Happening::OpenWatch {
            node: index,
            watch: name,
            after: version,
        };
        self.schedule(after, happening);
    }

    /// The request for a watch arrives at the server.
    pub(super) fn open_watch(&mut self, index: usize, name: u64, after: u64) {
        let is_this = |watch: &&mut Watch| watch.name == name;
        let polls = self.nodes[index].plan.polls;
        let Some(watch) = self.nodes[index].watch.as_mut().filter(is_this) else {
            return;
        };
        if polls {
            self.count(Fault::WatchForbidden403);
            let failure = failure(FailureKind::Forbidden, "may not watch");
            return self.announce(index, name, Rc::new(Change::Refused(failure)));
        }
        watch.open = true;
        self.note(format_args!(
            "node {index}: watch {name} opens after version {after}"
        ));
        match self.server.events_after(after) {
            Err(_) => {
                self.count(Fault::WatchTooOld410);
                self.end_watch(index, name, "too old");
            }
            Ok(events) => {
                for event in events {
                    self.announce(index, name, event);
                }
                let after = self.random.between(WATCH / 2, WATCH);
                let why = "its time is over";
                let happening = Happening::EndWatch {
                    node: index,
                    watch: name,
                    why,
                };
                self.schedule(after, happening);
            }
        }
    }

    /// Sends the newest event, which has just come to be, to all who watch.
    pub(super) fn publish(&mut self) {
        self.watcher_sees_change();
        let Some(change) = self.server.last_event() else {
            return;
        };
        for index in 0..self.nodes.len() {
            let Some(watch) = self.nodes[index].watch.filter(|watch| watch.open) else {
                continue;
            };
            if watch.frozen {
                continue;
            }
            if !self.storm {
                self.announce(index, watch.name, Rc::clone(&change));
                continue;
            }
            let chances = self.plan.chances;
            if self.random.happens(chances.event_lost) {
                self.note(format_args!(
                    "node {index}: watch {}: an event is lost",
                    watch.name
                ));
                self.count(Fault::WatchEventLost);
                continue;
            }
            if self.random.happens(chances.event_late) {
                self.count(Fault::WatchEventLate);
                let late = self.now + self.random.below(5 * SECOND);
                self.nodes[index].watch = Some(Watch {
                    last: watch.last.max(late),
                    ..watch
                });
            }
            self.announce(index, watch.name, Rc::clone(&change));
            if self.random.happens(chances.event_doubled) {
                self.count(Fault::WatchEventDoubled);
                self.announce(index, watch.name, Rc::clone(&change));
            }
            if self.random.happens(chances.watch_ends) {
                self.count(Fault::WatchEnded);
                self.end_watch(index, watch.name, "broken");
            }
        }
    }

    fn announce(&mut self, index: usize, name: u64, change: Rc<Change>) {
        let mut at = self.now + self.latency();
        let disordered = self.storm && self.random.happens(self.plan.chances.disordered);
        if let Some(watch) = &mut self.nodes[index].watch
            && !disordered
        {
            at = at.max(watch.last);
            watch.last = at;
        }
        if disordered {
            at += self.random.below(SECOND);
            self.count(Fault::WatchEventsDisordered);
        }
        let happening = Happening::Notice {
            node: index,
            watch: name,
            change,
        };
        self.schedule_at(at, happening);
    }

    pub(super) fn on_notice(&mut self, index: usize, name: u64, change: &Rc<Change>) {
        let node = &mut self.nodes[index];
        let incoming = node.cut.incoming;
        let Some(watch) = node.watch.as_mut().filter(|watch| watch.name == name) else {
            return;
        };
        if watch.frozen {
            return;
        }
        if incoming {
            // Lost on the way, and so is what comes after it on this connection.
            watch.frozen = true;
            self.note(format_args!(
                "node {index}: watch {name} falls silent: the node is cut off"
            ));
            self.count(Fault::WatchFrozen);
            let after = self.random.below(SILENCE);
            let why = "silent for too long";
            let happening = Happening::EndWatch {
                node: index,
                watch: name,
                why,
            };
            return self.schedule(after, happening);
        }
        if matches!(**change, Change::Refused(_)) {
            node.watch = None;
        }
        self.note(format_args!(
            "node {index}: watch {name}: {}",
            ShownChange(change)
        ));
        self.tell(index, Event::Changed(Change::clone(change)));
    }

    pub(super) fn end_watch(&mut self, index: usize, name: u64, why: &'static str) {
        let node = &mut self.nodes[index];
        if node.watch.is_none_or(|watch| watch.name != name) {
            return;
        }
        node.watch = None;
        self.note(format_args!("node {index}: watch {name} ends: {why}"));
        self.tell(index, Event::Changed(Change::Ended(why.to_owned())));
    }

    /// Ends the watches of all nodes, as a server that goes away does.
    pub(super) fn end_watches(&mut self) {
        for index in 0..self.nodes.len() {
            if let Some(watch) = self.nodes[index].watch.filter(|watch| watch.open) {
                self.end_watch(index, watch.name, "the server goes away");
            }
        }
    }

    /// Whether all that is sent now arrives at once.
    pub(super) fn is_tight(&self) -> bool {
        self.plan.profile == Profile::Tight
    }
}

impl Refusal {
    fn failure(self) -> Failure {
        match self {
            Self::Unauthorized => failure(FailureKind::Unauthorized, "not authenticated"),
            Self::Forbidden => failure(FailureKind::Forbidden, "not allowed"),
            Self::Unavailable => failure(FailureKind::Unreachable, "not available"),
            Self::TooManyRequests { seconds } => Failure {
                retry_after: Some(Duration::from_secs(seconds)),
                ..failure(FailureKind::Unreachable, "too many requests")
            },
        }
    }
}

fn failure(kind: FailureKind, message: &str) -> Failure {
    Failure {
        kind,
        message: message.to_owned(),
        retry_after: None,
    }
}

/// Any one: writes by hand go to the first.
pub(super) const FIRST: Replica = Replica(0);
