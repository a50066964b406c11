//! Decisions, as steps on a bench: one election against a store that behaves as the API server
//! does, where each request is answered, refused or lost on demand.

use std::time::Duration;

use super::*;
use crate::{
    clock::WallTime,
    lease::{FailureKind, Object, Record},
};

mod holding;
mod pace;
mod waiting;

const D: Duration = Duration::from_secs(15);

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn identity(text: &str) -> Identity {
    Identity::new(text).expect("not empty")
}

fn settings() -> Settings {
    Settings {
        identity: identity("me_1"),
        timing: Timing::new(Requested::default()).expect("the defaults are safe"),
        wait: None,
        create: Create::Auto,
        server_clock_skew: Some(Duration::from_secs(5)),
        kill_after: None,
        conflict: Exit::Conflict(75),
        seed: 7,
    }
}

/// One election, its store and its clocks.
struct Bench {
    election: Election,
    now: Now,
    stored: Option<Claim>,
    versions: u64,
    objects: u64,
    /// When the stored record was written, on the store's own clock, which is `now.boot`.
    written: Duration,
    /// And when the object was made.
    created: Duration,
    request: Option<Action>,
    watching: bool,
    actions: Vec<Action>,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        Self::holding_what(settings, |_| {})
    }

    /// A bench whose store was prepared by `prepare`.
    fn holding_what(settings: Settings, prepare: impl FnOnce(&mut Self)) -> Self {
        let start = Duration::from_secs(1000);
        let now = Now {
            at: Instant {
                boot: start,
                raw: start,
            },
            wall: WallTime {
                unix_micros: 1_700_000_000_250_000,
            },
        };
        let mut bench = Self {
            election: Election::new(settings.clone(), now),
            now,
            stored: None,
            versions: 100,
            objects: 0,
            written: start,
            created: start,
            request: None,
            watching: false,
            actions: Vec::new(),
        };
        prepare(&mut bench);
        bench.election = Election::new(settings, bench.now);
        bench.drain();
        bench
    }

    fn drain(&mut self) {
        while let Some(action) = self.election.poll() {
            match action {
                Action::Read(_) | Action::Write(..) => self.request = Some(action.clone()),
                Action::Watch(_) => self.watching = true,
                _ => {}
            }
            self.actions.push(action);
        }
        if let Some(deadline) = self.election.deadline(self.now) {
            assert!(
                !deadline.is_zero(),
                "a deadline that has come was not acted on: {:?}",
                self.election
            );
        }
    }

    fn event(&mut self, event: Event) {
        self.election.handle(self.now, event);
        self.drain();
    }

    /// Lets time pass on all clocks, waking the election when it wants to.
    fn pass(&mut self, duration: Duration) {
        let mut left = duration;
        while let Some(deadline) = self
            .election
            .deadline(self.now)
            .filter(|deadline| *deadline <= left)
        {
            self.jump(deadline);
            left -= deadline;
            self.event(Event::Wake);
        }
        self.jump(left);
    }

    /// Lets time pass without waking anybody.
    fn jump(&mut self, duration: Duration) {
        self.now.at.boot += duration;
        self.now.at.raw += duration;
        self.now.wall.unix_micros += i64::try_from(duration.as_micros()).expect("short");
    }

    // === The store ===

    /// Writes by hand.
    fn store(&mut self, record: Record) {
        self.versions += 1;
        let uid = match &self.stored {
            Some(claim) => claim.uid.clone(),
            None => {
                self.objects += 1;
                self.created = self.now.at.boot;
                Uid(format!("object-{}", self.objects))
            }
        };
        self.written = self.now.at.boot;
        self.stored = Some(Claim {
            uid,
            version: Version::new(self.versions.to_string()).expect("decimal"),
            record,
            written_ago: None,
            created_ago: None,
            object: Object::default(),
        });
    }

    fn delete(&mut self) -> Claim {
        self.versions += 1;
        let mut claim = self.stored.take().expect("something is stored");
        claim.version = Version::new(self.versions.to_string()).expect("decimal");
        claim
    }

    /// Carries out the request under way, and returns the answer that it deserves.
    fn carry_out(&mut self) -> (RequestId, Reply) {
        match self.request.take().expect("a request is under way") {
            Action::Read(id) => (id, Reply::Read(Ok(self.answer()))),
            Action::Write(id, write) => {
                let key = |claim: &Claim| (claim.uid.clone(), claim.version.clone());
                if write.base.as_ref().map(key) == self.stored.as_ref().map(key) {
                    self.store(write.record);
                    let claim = self.answer().expect("just written");
                    (id, Reply::Written(Ok(Outcome::Written(claim))))
                } else {
                    (id, Reply::Written(Ok(Outcome::Conflict)))
                }
            }
            other => panic!("{other:?} is no request"),
        }
    }

    fn answer(&self) -> Option<Claim> {
        self.stored.clone().map(|claim| Claim {
            written_ago: Some(self.now.at.boot - self.written),
            created_ago: Some(self.now.at.boot - self.created),
            ..claim
        })
    }

    /// Carries the request out and answers it.
    fn reply(&mut self) {
        let (id, reply) = self.carry_out();
        self.event(Event::Reply(id, reply));
    }

    /// Answers requests until none is under way.
    fn settle(&mut self) {
        while self.request.is_some() {
            self.reply();
        }
    }

    /// Carries the request out, or not, and loses the answer.
    fn lose_reply(&mut self, carried_out: bool) {
        self.fail_reply(carried_out, FailureKind::Unreachable, None);
    }

    fn fail_reply(&mut self, carried_out: bool, kind: FailureKind, retry_after: Option<Duration>) {
        let request = self.request.clone().expect("a request is under way");
        if carried_out {
            self.carry_out();
        }
        self.request = None;
        let failure = Failure {
            kind,
            message: format!("{kind:?}"),
            retry_after,
        };
        match request {
            Action::Read(id) => self.event(Event::Reply(id, Reply::Read(Err(failure)))),
            Action::Write(id, _) => self.event(Event::Reply(id, Reply::Written(Err(failure)))),
            other => panic!("{other:?} is no request"),
        }
    }

    fn refuse_reply(&mut self, kind: FailureKind) {
        self.fail_reply(false, kind, None);
    }

    /// Lets the watch see what is stored.
    fn notice(&mut self) {
        let claim = self.stored.clone().expect("something is stored");
        self.event(Event::Changed(Change::Written(claim)));
    }

    // === What came out ===

    fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    fn did(&self, wanted: impl Fn(&Action) -> bool) -> usize {
        self.actions.iter().filter(|action| wanted(action)).count()
    }

    fn starts(&self) -> usize {
        self.did(|action| matches!(action, Action::Start(_)))
    }

    fn kills(&self) -> usize {
        self.did(|action| matches!(action, Action::Kill))
    }

    fn term(&self) -> Term {
        let mut terms = self.actions.iter().filter_map(|action| match action {
            Action::Start(term) => Some(term.clone()),
            _ => None,
        });
        terms.next().expect("the command was started")
    }

    fn exit(&self) -> Option<Exit> {
        self.actions.iter().find_map(|action| match action {
            Action::Exit(exit, _) => Some(*exit),
            _ => None,
        })
    }

    fn is_writing(&self) -> bool {
        matches!(self.request, Some(Action::Write(..)))
    }

    fn is_reading(&self) -> bool {
        matches!(self.request, Some(Action::Read(_)))
    }

    fn holder(&self) -> Option<&str> {
        self.stored
            .as_ref()?
            .record
            .holder
            .as_ref()
            .map(Identity::as_str)
    }

    /// A bench whose command runs.
    fn running(settings: Settings) -> Self {
        let mut bench = Self::new(settings);
        bench.settle();
        assert_eq!(bench.starts(), 1);
        bench
    }
}

fn held_by(text: &str) -> Record {
    Record {
        holder: Some(identity(text)),
        duration: Some(D),
        renew_time: Some(WallTime { unix_micros: 1 }),
        ..Record::default()
    }
}
