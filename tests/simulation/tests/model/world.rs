//! How a world goes on: what comes of a step.

use std::time::Duration;

use lease_exec_simulation::{
    election::{Action, Create, Election, Event, NotStarted, Reply, Report, Settings, Timing},
    exit::Exit,
    lease::{Change, Claim, Failure, FailureKind, Identity, Object, Outcome, Uid, Version, Write},
};

use crate::state::{
    Cargo, End, Kind, Landmark, Message, News, Node, Rate, Request, Shared, State, Stored, Tree,
};
use crate::step::Step;

/// One kind of world, with what bounds it.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// The clocks of the nodes; there are as many nodes.
    pub(crate) rates: Vec<Rate>,
    pub(crate) timing: Timing,
    /// Faults in one history, at most.
    pub(crate) faults: u8,
    /// No history goes on beyond this.
    pub(crate) horizon: Duration,
    /// Commands that end by themselves in one history, at most.
    pub(crate) ends: u8,
    /// Processes that start after the first of each node in one history, at most.
    pub(crate) restarts: u8,
    /// From SIGKILL to dead, at most.
    pub(crate) death: Duration,
    pub(crate) server: Server,
    pub(crate) menu: Menu,
    /// How often somebody deletes the lease in one history, at most.
    pub(crate) deletions: u8,
    /// Who makes a lease waits before it starts anything.
    pub(crate) create: Create,
}

/// Which faults there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Menu {
    All,
    /// Delays and pauses alone, so that more of them fit into one history.
    Slowness,
}

/// How a server takes a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// Only over the version that it names.
    Compares,
    /// Always, which no server does.
    Obeys,
}

/// Messages under way at once, at most. What would lead to more is not looked at.
pub(crate) const MESSAGES: usize = 4;

/// By how much the server's clock makes a record look older than it is. It is what the elections
/// are told to allow for.
const SKEW: Duration = Duration::from_secs(2);

impl World {
    /// A world in which a tree takes at most the kill budget to die, no command ends by itself and
    /// no process follows another.
    pub(crate) fn new(rates: Vec<Rate>, timing: Timing, faults: u8, horizon_seconds: u64) -> Self {
        Self {
            rates,
            timing,
            faults,
            horizon: Duration::from_secs(horizon_seconds),
            ends: 0,
            restarts: 0,
            // Whoever takes the lease at the very moment of the death is neither early nor late.
            death: timing.kill_budget - Duration::from_nanos(1),
            server: Server::Compares,
            menu: Menu::All,
            deletions: 0,
            create: Create::Auto,
        }
    }

    pub(crate) fn deletions(self, deletions: u8) -> Self {
        Self { deletions, ..self }
    }

    pub(crate) fn create(self, create: Create) -> Self {
        Self { create, ..self }
    }

    pub(crate) fn ends(self, ends: u8) -> Self {
        Self { ends, ..self }
    }

    pub(crate) fn menu(self, menu: Menu) -> Self {
        Self { menu, ..self }
    }

    pub(crate) fn restarts(self, restarts: u8) -> Self {
        Self { restarts, ..self }
    }

    pub(crate) fn beginning(&self) -> State {
        let mut state = State {
            now: Duration::ZERO,
            faults: self.faults,
            ends: self.ends,
            restarts: self.restarts,
            deletions: self.deletions,
            stored: None,
            versions: 0,
            objects: 0,
            nodes: Vec::new(),
            messages: Vec::new(),
            token: None,
            landmark: None,
            broken: None,
        };
        for rate in &self.rates {
            state.nodes.push(Shared::new(Node {
                rate: *rate,
                life: 0,
                election: None,
                request: None,
                watching: false,
                wake: None,
                paused: false,
                tree: None,
                orphan: None,
                unheard: Vec::new(),
                gone: false,
            }));
        }
        for node in 0..self.rates.len() {
            self.begin(&mut state, node);
        }
        state
    }

    // === What comes of it ===

    pub(crate) fn after(&self, state: &State, step: Step) -> Option<State> {
        let mut state = state.clone();
        state.landmark = None;
        state.faults -= u8::from(step.is_fault());
        state.ends -= u8::from(matches!(step, Step::End(_)));
        state.restarts -= u8::from(matches!(step, Step::Restart(_)));
        state.deletions -= u8::from(matches!(step, Step::Delete));
        match step {
            Step::Deliver(place) => {
                let message = state.messages.remove(place);
                self.deliver(&mut state, &message);
            }
            Step::Lose(place) => drop(state.messages.remove(place)),
            Step::Delay(place) => {
                let message = state.messages.remove(place);
                send(&mut state, late(&message));
            }
            Step::Repeat(place) => {
                let message = state.messages.remove(place);
                send(&mut state, late(&message));
                self.deliver(&mut state, &message);
            }
            Step::Break(place) => {
                let message = state.messages.remove(place);
                self.fail_request(&mut state, message.node);
            }
            Step::Wake(node) => self.tell(&mut state, node, Event::Wake),
            Step::TimeOut(node) => self.fail_request(&mut state, node),
            Step::EndWatch(node) => {
                change(&mut state, node, |node| node.watching = false);
                forget_notices(&mut state, node);
                let ended = Change::Ended("closed".to_owned());
                self.tell(&mut state, node, Event::Changed(ended));
            }
            Step::End(node) => self.end(&mut state, node),
            Step::Dead(node) => self.bury(&mut state, node),
            Step::Kill(node) => self.kill(&mut state, node),
            Step::OrphanDead(node) => change(&mut state, node, |node| node.orphan = None),
            Step::Stop(node) => {
                let term = Event::Signalled {
                    signal: 15,
                    ends: true,
                };
                self.tell(&mut state, node, term);
            }
            Step::Crash(node) => self.crash(&mut state, node),
            Step::Restart(node) => self.begin(&mut state, node),
            Step::Pause(node) => change(&mut state, node, |node| node.paused = true),
            Step::Resume(node) => self.resume(&mut state, node),
            Step::Delete => self.delete(&mut state),
            Step::Advance => state.now = self.next(&state)?,
        }
        let alive = |node: &Shared<Node>| {
            usize::from(node.tree.is_some()) + usize::from(node.orphan.is_some())
        };
        if state.nodes.iter().map(alive).sum::<usize>() > 1 {
            state.broken = Some("two commands run");
        }
        Some(state)
    }

    fn deliver(&self, state: &mut State, message: &Message) {
        let node = message.node;
        let is_alive = state.nodes[node].life == message.life;
        match &message.cargo {
            Cargo::Read(id) => {
                let reply = Reply::Read(Ok(self.answer(state)));
                answer(state, message, Cargo::Answer(*id, reply));
            }
            Cargo::Write(id, write) => {
                let reply = Reply::Written(Ok(self.write(state, message, write)));
                answer(state, message, Cargo::Answer(*id, reply));
            }
            Cargo::Answer(id, reply) => {
                let awaited = state.nodes[node].request.is_some_and(|it| it.id == *id);
                if is_alive && awaited {
                    change(state, node, |node| node.request = None);
                    let read = matches!(reply, Reply::Read(_));
                    self.tell_and_look(state, node, Event::Reply(*id, reply.clone()), read);
                }
            }
            Cargo::Notice(seen) if is_alive && state.nodes[node].watching => {
                self.tell(state, node, Event::Changed(seen.clone()));
            }
            Cargo::Notice(_) => {}
        }
    }

    // === The server ===

    fn write(&self, state: &mut State, message: &Message, write: &Write) -> Outcome {
        let stored = state.stored.as_ref().map(|stored| &stored.claim);
        let key = |claim: &Claim| (claim.uid.clone(), claim.version.clone());
        let fits = write.base.as_ref().map(key) == stored.map(key);
        if !fits && self.server == Server::Compares {
            return Outcome::Conflict;
        }
        let author = identity(message.node, message.life);
        let before = stored.and_then(|claim| claim.record.holder.clone());
        match (&before, &write.record.holder) {
            (Some(before), None) if *before != author => {
                state.broken = Some("somebody else than the holder emptied the record");
            }
            (Some(before), Some(after)) if before != after => {
                state.landmark = Some(Landmark::TakeOver);
            }
            (None, Some(_)) => {
                let last = state.stored.as_ref().map(|stored| stored.author);
                if last.is_some_and(|last| last != message.node) {
                    state.landmark = Some(Landmark::HandOver);
                }
            }
            _ => {}
        }
        state.versions += 1;
        if stored.is_none() {
            state.objects += 1;
        }
        let claim = Claim {
            uid: Uid(format!("object-{}", state.objects)),
            version: version(state.versions),
            record: write.record.clone(),
            written_ago: None,
            created_ago: None,
            object: Object::default(),
        };
        state.stored = Some(Stored {
            claim: claim.clone(),
            written: state.now,
            author: message.node,
        });
        publish(state, &Change::Written(claim.clone()));
        Outcome::Written(claim)
    }

    /// Somebody deletes the lease, whoever holds it.
    fn delete(&self, state: &mut State) {
        let Some(stored) = state.stored.take() else {
            return;
        };
        state.versions += 1;
        let claim = Claim {
            version: version(state.versions),
            ..stored.claim
        };
        state.landmark = Some(Landmark::Deleted);
        publish(state, &Change::Deleted(claim));
    }

    /// What is stored, with its age by the server's clock. Ages that decide nothing are left out,
    /// so that more states are the same.
    fn answer(&self, state: &State) -> Option<Claim> {
        let stored = state.stored.as_ref()?;
        let age = state.now - stored.written + SKEW;
        let duration = stored.claim.record.duration.unwrap_or_default();
        Some(Claim {
            written_ago: Some(age).filter(|age| *age >= duration + SKEW),
            ..stored.claim.clone()
        })
    }

    // === The nodes ===

    /// Hands an event to an election, and carries out what it asks for.
    fn tell(&self, state: &mut State, node: usize, event: Event) {
        self.tell_and_look(state, node, event, false);
    }

    /// As [`Self::tell`]; a term that begins or goes on in answer to a read is a landmark.
    fn tell_and_look(&self, state: &mut State, index: usize, event: Event, read: bool) {
        let mut node = Node::clone(&state.nodes[index]);
        let Some(mut election) = node.election.take() else {
            return;
        };
        let now = node.rate.now(state.now);
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            election.handle(now, event);
            while let Some(action) = election.poll() {
                let proves = matches!(
                    action,
                    Action::Extend { .. } | Action::Report(Report::Acquired { .. })
                );
                if read && proves {
                    state.landmark = Some(Landmark::Matched);
                }
                if let Action::Exit(..) = action {
                    leave(state, index, node);
                    return;
                }
                events.extend(self.carry_out(state, index, &mut node, action));
            }
        }
        let deadline = election.deadline(now);
        if deadline.is_some_and(|deadline| deadline.is_zero()) {
            state.broken = Some("a deadline that has come was not acted on");
        }
        node.wake = deadline.map(|deadline| node.rate.when(now.at, deadline));
        node.election = Some(election);
        state.nodes[index] = Shared::new(node);
    }

    /// Carries out an action; what the guard says to it at once is returned.
    fn carry_out(
        &self,
        state: &mut State,
        index: usize,
        node: &mut Node,
        action: Action,
    ) -> Option<Event> {
        let now = node.rate.now(state.now).at;
        match action {
            Action::Read(id) => {
                self.request(state, index, node, (Kind::Read, Cargo::Read(id)), id);
            }
            Action::Write(id, write) => {
                if write.record.holder.is_none() && node.tree.is_some() {
                    state.broken = Some("the lease was released before the tree was gone");
                }
                if write.record.holder.is_some() && node.gone {
                    state.broken = Some("the lease was renewed after the tree was gone");
                }
                self.request(
                    state,
                    index,
                    node,
                    (Kind::Write, Cargo::Write(id, write)),
                    id,
                );
            }
            Action::Watch(from) => {
                node.watching = true;
                forget_notices(state, index);
                let newer = state.stored.as_ref().map(|stored| stored.claim.clone());
                if let Some(claim) = newer.filter(|claim| claim.version > from) {
                    notify(state, index, Change::Written(claim));
                }
            }
            Action::Start(term) => {
                if state.token.as_ref().is_some_and(|last| *last >= term.token) {
                    state.broken = Some("a token did not rise");
                }
                if node.tree.is_some() || node.gone {
                    state.broken = Some("one process started two commands");
                }
                let kill_at = node.rate.when(term.sent, term.kill_deadline);
                if now.held_since(term.sent) >= term.kill_deadline {
                    return Some(Event::NotStarted(NotStarted::TooLate));
                }
                if state.objects > 1 {
                    state.landmark = Some(Landmark::StartedAgain);
                }
                state.token = Some(term.token);
                node.tree = Some(Tree {
                    kill_at,
                    dead_by: None,
                    has_ended: false,
                });
            }
            Action::Extend {
                sent,
                kill_deadline,
            } => {
                // The guard takes no order once its deadline has passed, and moves it only forward.
                if let Some(tree) = &mut node.tree
                    && tree.dead_by.is_none()
                    && tree.kill_at > state.now
                {
                    let offered = node.rate.when(sent, kill_deadline);
                    tree.kill_at = tree.kill_at.max(offered);
                }
            }
            Action::Kill => {
                if let Some(tree) = &mut node.tree {
                    tree.dead_by.get_or_insert(state.now + self.death);
                }
            }
            Action::Terminate | Action::Report(_) | Action::Exit(..) => {}
        }
        None
    }

    fn request(
        &self,
        state: &mut State,
        index: usize,
        node: &mut Node,
        (kind, cargo): (Kind, Cargo),
        id: lease_exec_simulation::election::RequestId,
    ) {
        let now = node.rate.now(state.now).at;
        node.request = Some(Request {
            id,
            kind,
            limit: node.rate.when(now, self.timing.request_timeout),
        });
        let life = node.life;
        send(
            state,
            Message {
                node: index,
                life,
                cargo,
                late: false,
            },
        );
    }

    /// The node learns that its request has failed, whatever became of it.
    fn fail_request(&self, state: &mut State, node: usize) {
        let Some(request) = state.nodes[node].request else {
            return;
        };
        change(state, node, |node| node.request = None);
        // An answer that comes now is no longer waited for.
        let life = state.nodes[node].life;
        state.messages.retain(|message| {
            !(message.node == node
                && message.life == life
                && matches!(&message.cargo, Cargo::Answer(id, _) if *id == request.id))
        });
        let failure = Failure {
            kind: FailureKind::Unreachable,
            message: "no answer".to_owned(),
            retry_after: None,
        };
        let reply = match request.kind {
            Kind::Read => Reply::Read(Err(failure)),
            Kind::Write => Reply::Written(Err(failure)),
        };
        self.tell(state, node, Event::Reply(request.id, reply));
    }

    fn kill(&self, state: &mut State, node: usize) {
        let dead_by = state.now + self.death;
        change(state, node, |node| {
            if let Some(tree) = &mut node.tree {
                tree.dead_by = Some(dead_by);
            }
        });
    }

    /// The command ends by itself, and the guard ends what it leaves behind.
    fn end(&self, state: &mut State, node: usize) {
        let dead_by = state.now + self.death;
        change(state, node, |node| {
            if let Some(tree) = &mut node.tree {
                tree.has_ended = true;
                tree.dead_by.get_or_insert(dead_by);
            }
            node.unheard.push(News::Ended(End::ByItself));
        });
        self.hear(state, node);
    }

    /// The tree is dead, and the guard says so.
    fn bury(&self, state: &mut State, node: usize) {
        let has_ended = state.nodes[node].tree.is_some_and(|tree| tree.has_ended);
        if !has_ended {
            state.landmark = Some(Landmark::Killed);
        }
        change(state, node, |node| {
            node.tree = None;
            if !has_ended {
                node.unheard.push(News::Ended(End::Killed));
            }
            node.unheard.push(News::Gone);
        });
        self.hear(state, node);
    }

    /// Tells the process what its guard says, unless it is stopped.
    fn hear(&self, state: &mut State, node: usize) {
        if state.nodes[node].paused {
            return;
        }
        let unheard = state.nodes[node].unheard.clone();
        change(state, node, |node| node.unheard.clear());
        let at = state.nodes[node].rate.now(state.now).at;
        for news in unheard {
            let event = match news {
                News::Ended(End::ByItself) => Event::Ended {
                    exit: Exit::Command(0),
                    at,
                },
                News::Ended(End::Killed) => Event::Ended {
                    exit: Exit::Signal(9),
                    at,
                },
                News::Gone => {
                    change(state, node, |node| node.gone = true);
                    Event::TreeGone
                }
            };
            self.tell(state, node, event);
        }
    }

    /// The process dies, and its guard kills the tree at once.
    fn crash(&self, state: &mut State, index: usize) {
        let mut node = Node::clone(&state.nodes[index]);
        let dead_by = state.now + self.death;
        if let Some(tree) = node.tree.take() {
            node.orphan = Some(tree.dead_by.unwrap_or(dead_by));
        }
        leave(state, index, node);
    }

    fn begin(&self, state: &mut State, index: usize) {
        let mut node = Node::clone(&state.nodes[index]);
        node.life += 1;
        node.gone = false;
        node.unheard.clear();
        let settings = Settings {
            identity: identity(index, node.life),
            timing: self.timing,
            wait: None,
            create: self.create,
            server_clock_skew: Some(SKEW),
            kill_after: None,
            conflict: Exit::Conflict(75),
            seed: index as u64,
        };
        node.election = Some(Election::new(settings, node.rate.now(state.now)));
        state.nodes[index] = Shared::new(node);
        self.tell(state, index, Event::Wake);
    }

    fn resume(&self, state: &mut State, node: usize) {
        change(state, node, |node| node.paused = false);
        self.hear(state, node);
    }
}

/// The process is no more.
fn leave(state: &mut State, index: usize, mut node: Node) {
    if node.tree.is_some() {
        state.broken = Some("a process has left its tree behind");
    }
    node.election = None;
    node.request = None;
    node.watching = false;
    node.wake = None;
    node.paused = false;
    state.nodes[index] = Shared::new(node);
    state
        .messages
        .retain(|message| message.node != index || message.cargo.is_request());
}

fn answer(state: &mut State, request: &Message, cargo: Cargo) {
    let node = &state.nodes[request.node];
    let Cargo::Answer(id, _) = &cargo else {
        return;
    };
    // Nobody waits for another.
    if node.life == request.life && node.request.is_some_and(|request| request.id == *id) {
        let (node, life) = (request.node, request.life);
        send(
            state,
            Message {
                node,
                life,
                cargo,
                late: false,
            },
        );
    }
}

fn notify(state: &mut State, node: usize, change: Change) {
    let life = state.nodes[node].life;
    send(
        state,
        Message {
            node,
            life,
            cargo: Cargo::Notice(change),
            late: false,
        },
    );
}

/// Tells all who watch.
fn publish(state: &mut State, change: &Change) {
    for node in 0..state.nodes.len() {
        if state.nodes[node].watching {
            notify(state, node, change.clone());
        }
    }
}

fn forget_notices(state: &mut State, node: usize) {
    state
        .messages
        .retain(|message| message.node != node || !matches!(message.cargo, Cargo::Notice(_)));
}

fn late(message: &Message) -> Message {
    Message {
        late: true,
        ..message.clone()
    }
}

fn send(state: &mut State, message: Message) {
    let message = Shared::new(message);
    let place = state
        .messages
        .partition_point(|other| other.digest() < message.digest());
    state.messages.insert(place, message);
}

fn change(state: &mut State, index: usize, change: impl FnOnce(&mut Node)) {
    let mut node = Node::clone(&state.nodes[index]);
    change(&mut node);
    state.nodes[index] = Shared::new(node);
}

fn version(number: u32) -> Version {
    Version::new(number.to_string()).expect("a number from one up")
}

fn identity(node: usize, life: u8) -> Identity {
    Identity::new(format!("node-{node}_{life}")).expect("not empty")
}
