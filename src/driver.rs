//! The only loop, and the only place that asks the time: it turns the world into the election's
//! events, and the election's actions into the world.
//!
//! ```text
//!  store ── reply, change ──┐
//!  guard ── report ─────────┼─▶ Event ─▶ election ─▶ Action ─▶ store, guard, log, exit
//!  signals ── received ─────┤
//!  clock ── deadline ───────┘
//! ```
//!
//! Must not: hold a condition about leases.

use std::{future::Future, pin::Pin, rc::Rc, time::Duration};

use futures_util::future::{Either, pending};
use nix::sys::signal::Signal;
use tokio::{sync::mpsc, time};
use tracing::{debug, error, info, trace, warn};

use crate::{
    clock::{Instant, Now, shown},
    election::{
        Action, Election, Event, KillReason, NotStarted, Reply, Report, RequestId, Settings, Term,
    },
    exit::Exit,
    lease::{Change, Failure, FailureKind},
    signals::{self, Received, StopSignal, ends_by_default},
    store::{Store, Watch},
    supervisor::{self, Deadline, FindErrorKind, Status, Supervisor},
};

/// How an election ended.
#[derive(Debug)]
pub struct Ending {
    /// The exit code.
    pub exit: Exit,
    /// What is left to say, as one sentence.
    pub message: Option<String>,
}

impl Ending {
    /// An end with something to say.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: Some(message.into()),
        }
    }
}

/// What the driver connects with the store.
pub struct Parts {
    /// The processes.
    pub supervisor: Supervisor,
    /// The signals that arrive; they have been forwarded to the command already.
    pub signals: mpsc::Receiver<Received>,
    /// The signal by which the command is asked to end.
    pub stop_signal: StopSignal,
    /// The lease's namespace and name, for people and for the command.
    pub lease: (String, String),
    /// Where the lease lives, for people.
    pub place: String,
    /// The identity by which a lease-exec above us, whose environment we have, holds a lease.
    pub above: Option<String>,
}

/// A request under way.
type Request = Pin<Box<dyn Future<Output = (RequestId, Reply)>>>;

/// Contends for the lease, runs the command, and returns when nothing of it is left, or when there
/// is no more to be done about it.
pub async fn run<S: Store + 'static>(store: S, parts: Parts, settings: Settings) -> Ending {
    let driver = Driver {
        store: Rc::new(store),
        watch: None,
        request: None,
        supervisor: parts.supervisor,
        signals: parts.signals,
        stop_signal: parts.stop_signal,
        lease: format!("{}/{}", parts.lease.0, parts.lease.1),
        place: parts.place,
        above: parts.above,
        environment: vec![
            ("LEASE_NAME", parts.lease.1),
            ("LEASE_NAMESPACE", parts.lease.0),
            (
                "LEASE_HOLDER_IDENTITY",
                settings.identity.as_str().to_owned(),
            ),
        ],
        request_timeout: settings.timing.request_timeout,
        // With --no-wait there is no other attempt for which the store can get ready.
        preparation: match settings.wait {
            Some(Duration::ZERO) => LONGEST_PREPARATION,
            _ => Duration::ZERO,
        },
        consequence: None,
        refused_at: None,
        is_awaiting: false,
    };
    driver.run(settings).await
}

struct Driver<S: Store> {
    store: Rc<S>,
    watch: Option<S::Watch>,
    request: Option<Request>,
    supervisor: Supervisor,
    signals: mpsc::Receiver<Received>,
    stop_signal: StopSignal,
    lease: String,
    place: String,
    above: Option<String>,
    environment: Vec<(&'static str, String)>,
    request_timeout: Duration,
    /// How long a read may take before its own limit counts.
    preparation: Duration,
    /// What carrying out an action has led to at once.
    consequence: Option<Event>,
    /// When a stop was last refused.
    refused_at: Option<Instant>,
    /// The command ended, and those whom it left behind are awaited.
    is_awaiting: bool,
}

/// More than a credential plugin may take, which therefore says itself what was wrong.
const LONGEST_PREPARATION: Duration = Duration::from_secs(150);

/// Refusals that follow each other more closely are one.
const REFUSAL_PAUSE: Duration = Duration::from_millis(250);

impl<S: Store + 'static> Driver<S> {
    async fn run(mut self, settings: Settings) -> Ending {
        info!(lease = %self.lease, store = %self.place, identity = %settings.identity, "attempting to acquire the lease");
        let mut election = Election::new(settings, Now::read());
        loop {
            while let Some(action) = election.poll() {
                if let Some(ending) = self.carry_out(action) {
                    self.supervisor.finish();
                    return ending;
                }
            }
            let deadline = election.deadline(Now::read());
            let event = self.next_event(deadline).await;
            trace!(?event, "event");
            election.handle(Now::read(), event);
        }
    }

    /// Waits for whatever happens first. All of these may be dropped and asked again.
    ///
    /// What means nothing to the election is an event too: it looks at the time then. Otherwise a
    /// command that goes on being stopped could put that off for ever.
    async fn next_event(&mut self, deadline: Option<Duration>) -> Event {
        if let Some(event) = self.consequence.take() {
            return event;
        }
        let sleep = match deadline {
            Some(deadline) => Either::Left(time::sleep(deadline)),
            None => Either::Right(pending()),
        };
        tokio::select! {
            // The order of importance: what stops us comes before what prolongs.
            biased;
            report = self.supervisor.next() => self.on_report(report),
            Some(received) = self.signals.recv() => self.on_signal(received),
            change = next_change(&mut self.watch) => {
                if matches!(change, Change::Ended(_) | Change::Refused(_)) {
                    self.watch = None;
                }
                Event::Changed(change)
            }
            (id, reply) = next_reply(&mut self.request) => {
                self.request = None;
                Event::Reply(id, reply)
            }
            () = sleep => Event::Wake,
        }
    }

    fn on_signal(&mut self, received: Received) -> Event {
        if received.signal == libc::SIGTSTP {
            self.on_stop(received);
            return Event::Wake;
        }
        let signal = received.signal;
        let is_asked = self.stop_signal.is_asked_by(received);
        if is_asked {
            self.supervisor.cancel_start(signal);
        }
        let is_ours = !self.supervisor.is_engaged() && ends_by_default(signal);
        let ends = is_ours || is_asked;
        Event::Signalled { signal, ends }
    }

    /// Who waits may be stopped: if the lease is acquired meanwhile, it runs out again. But not in
    /// the middle of a write, for whose end others would wait as long as we are stopped.
    fn on_stop(&mut self, received: Received) {
        if !self.supervisor.is_engaged() {
            return self.store.while_idle(self.request_timeout, signals::stop);
        }
        if received.from_terminal {
            self.supervisor.undo_stop();
        }
        self.refuse_stop(received.signal);
    }

    /// Says once what Ctrl-Z leads to: both this process and the guard may notice it, or only one,
    /// because continuing the command takes a stop that is still pending here away.
    fn refuse_stop(&mut self, signal: i32) {
        let now = Instant::now();
        let is_said = |at: Instant| now.held_since(at) < REFUSAL_PAUSE;
        if !self.refused_at.is_some_and(is_said) {
            let lease = &self.lease;
            warn!(%lease, signal = %name_of(signal), "refused to stop the command: a stopped holder could not renew");
        }
        self.refused_at = Some(now);
    }

    fn carry_out(&mut self, action: Action) -> Option<Ending> {
        match action {
            Action::Read(id) => {
                let store = Rc::clone(&self.store);
                let limit = self.request_timeout;
                let preparation = self.preparation;
                self.request = Some(Box::pin(async move {
                    // What comes too late is told by the attempt.
                    let _ = time::timeout(preparation, store.prepare()).await;
                    (id, Reply::Read(within(limit, &*store, store.read()).await))
                }));
            }
            Action::Write(id, write) => {
                let store = Rc::clone(&self.store);
                let limit = self.request_timeout;
                self.request = Some(Box::pin(async move {
                    (
                        id,
                        Reply::Written(within(limit, &*store, store.write(write)).await),
                    )
                }));
            }
            Action::Watch(version) => self.watch = Some(self.store.watch(Some(version))),
            Action::Start(term) => self.start(term),
            Action::Extend {
                sent,
                kill_deadline,
            } => {
                debug!(lease = %self.lease, "renewed the lease");
                self.supervisor.extend(Deadline {
                    sent,
                    kill_after: kill_deadline,
                });
            }
            Action::Terminate => self.supervisor.terminate(),
            Action::Kill => self.supervisor.kill(),
            Action::Report(report) => self.tell(report),
            Action::Exit(exit, message) => return Some(Ending { exit, message }),
        }
        None
    }

    fn start(&mut self, term: Term) {
        let mut environment = self.environment.clone();
        environment.push(("LEASE_TRANSITIONS", term.transitions.to_string()));
        environment.push(("LEASE_UID", term.uid.0));
        environment.push(("LEASE_FENCING_TOKEN", term.token.to_string()));
        let deadline = Deadline {
            sent: term.sent,
            kill_after: term.kill_deadline,
        };
        if let Err(error) = self.supervisor.start(deadline, &environment) {
            let reason = format!("failed to start the command: {error:#}");
            let refused = NotStarted::Refused(Exit::Internal, reason);
            self.consequence = Some(Event::NotStarted(refused));
        }
    }

    /// What the guard says, as an event of the election.
    fn on_report(&mut self, report: supervisor::Report) -> Event {
        use supervisor::Report as Said;
        let lease = &self.lease;
        match report {
            Said::Emptied(cgroup) => {
                warn!(%lease, %cgroup, "killing what a dead lease-exec has left in its cgroup");
                Event::Wake
            }
            Said::Started { pid, means } => {
                info!(%lease, pid, "started the command");
                debug!(%lease, "to end its tree there are: {means}");
                Event::Wake
            }
            Said::ExecFailed(error) => {
                let refused = NotStarted::Refused(exit_of(error.kind), error.message);
                Event::NotStarted(refused)
            }
            Said::NotStarted(reason) => Event::NotStarted(not_started(reason)),
            Said::Forwarded(signal) => {
                let receiver = if self.is_awaiting {
                    "what the command left behind"
                } else {
                    "the command"
                };
                info!(%lease, "forwarded {} to {receiver}", name_of(signal));
                Event::Wake
            }
            Said::Stopped(signal) => {
                self.refuse_stop(signal);
                Event::Wake
            }
            Said::Awaiting(status) => {
                self.tell_end(status, "; waiting for what it left behind");
                self.is_awaiting = true;
                Event::Wake
            }
            Said::Ended { status, at } => {
                if self.is_awaiting {
                    info!(%lease, "what the command left behind has ended");
                } else {
                    self.tell_end(status, "");
                }
                let exit = match status {
                    Status::Exited(code) => Exit::Command(code),
                    Status::Signalled(signal) => Exit::Signal(signal),
                };
                Event::Ended { exit, at }
            }
            Said::Overdue(status) => {
                self.tell_end(status, "");
                Event::Overdue
            }
            Said::Draining { count } => {
                let number = (count > 0).then_some(count);
                info!(%lease, number, "ending what the command left behind (--wait-descendants waits for it)");
                Event::Wake
            }
            Said::Empty => Event::TreeGone,
            Said::Survivors(survivors) => {
                let survivors = survivors
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>();
                Event::TreeStuck {
                    survivors: match survivors.join(", ") {
                        nobody if nobody.is_empty() => "nobody of it can be seen".to_owned(),
                        survivors => survivors,
                    },
                }
            }
            Said::GuardDied { pid, status } => Event::GuardDied(death_of_guard(pid, status)),
        }
    }

    fn tell_end(&self, status: Status, what_next: &str) {
        let lease = &self.lease;
        match status {
            Status::Exited(code) => info!(%lease, code, "the command ended{what_next}"),
            Status::Signalled(signal) => {
                info!(%lease, signal = %name_of(signal), "a signal ended the command{what_next}");
            }
        }
    }

    /// One line for one change of state.
    fn tell(&self, report: Report) {
        let lease = &self.lease;
        match report {
            Report::HeldBy { holder, duration } => {
                let duration = show(duration);
                info!(%lease, %holder, %duration, "somebody else holds the lease");
                if self.above.as_deref() == Some(holder.as_str()) {
                    warn!(%lease, "the holder is the lease-exec that has started us (LEASE_HOLDER_IDENTITY), and will not release the lease before we end");
                }
            }
            Report::Unreachable(message) => warn!(%lease, "can't get at the lease: {message}"),
            Report::Reachable => info!(%lease, "can get at the lease again"),
            Report::Polling(message) => warn!(%lease, "polling instead of watching: {message}"),
            Report::Acquired {
                token,
                transitions,
                taken_from: None,
            } => {
                info!(%lease, %token, transitions, "acquired the lease");
            }
            Report::Acquired {
                token,
                transitions,
                taken_from: Some(holder),
            } => {
                info!(%lease, %token, transitions, %holder, "acquired the lease, whose holder had let it run out");
            }
            Report::Quarantined(duration) => {
                let duration = show(duration);
                info!(%lease, %duration, "the lease is young: waiting before the command starts");
            }
            Report::RenewFailed { message, left } => {
                let left = show(left);
                warn!(%lease, terminate_in = %left, "failed to renew the lease: {message}");
            }
            Report::Renewed => info!(%lease, "renewed the lease again"),
            Report::Lost { reason, grace } => {
                let grace = show(grace);
                error!(%lease, kill_in = %grace, "lost the lease: {reason}");
            }
            Report::Killing(reason) => {
                let reason = match reason {
                    KillReason::KillAfter { after, signal } => {
                        let after = shown(after);
                        let signal = name_of(signal);
                        format!("--kill-after {after} has passed since {signal}")
                    }
                    KillReason::Deadline => "the deadline has passed".to_owned(),
                };
                warn!(%lease, "killing the command's whole tree: {reason}");
            }
            Report::Stuck(survivors) => {
                error!(%lease, "the command's tree is not proven dead: {survivors}");
            }
            Report::Released => info!(%lease, "released the lease"),
            Report::NotReleased { message, left } => {
                let left = show(left);
                warn!(%lease, free_in = %left, "gave up releasing the lease: {message}");
            }
        }
    }
}

fn not_started(reason: supervisor::NotStarted) -> NotStarted {
    use supervisor::NotStarted as Said;
    match reason {
        Said::NoAnswer => NotStarted::NoAnswer,
        Said::Cancelled(signal) => NotStarted::Cancelled(signal),
        Said::TooLate => NotStarted::TooLate,
        Said::NoProcess(errno) => {
            let error = std::io::Error::from_raw_os_error(errno);
            let reason = format!("failed to start the command: {error}");
            NotStarted::Refused(Exit::Internal, reason)
        }
    }
}

fn death_of_guard(pid: i32, status: Option<Status>) -> String {
    let how = match status {
        Some(Status::Exited(code)) => format!("exited with {code}"),
        Some(Status::Signalled(signal)) => format!("was killed by {}", name_of(signal)),
        None => "died".to_owned(),
    };
    format!("the guard process (pid {pid}) {how}")
}

/// A signal as people know it.
fn name_of(signal: i32) -> String {
    match Signal::try_from(signal) {
        Ok(signal) => signal.as_str().to_owned(),
        // Real-time signals have no names.
        Err(_) => signal.to_string(),
    }
}

/// A duration as people read it: with two decimals, rounded down.
fn show(duration: Duration) -> String {
    let hundredths = duration.as_millis() / 10;
    format!("{}.{:02}s", hundredths / 100, hundredths % 100)
}

/// The exit code for a command that can't be executed.
pub fn exit_of(kind: FindErrorKind) -> Exit {
    match kind {
        FindErrorKind::NotFound => Exit::NotFound,
        FindErrorKind::NotExecutable => Exit::NotExecutable,
    }
}

/// Puts a limit on one attempt. What is dropped then may still be carried out.
async fn within<T>(
    limit: Duration,
    store: &impl Store,
    attempt: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    time::timeout(limit, attempt).await.unwrap_or_else(|_| {
        let awaited = store.awaited();
        let awaited = awaited.map_or_else(String::new, |what| format!(": waited for {what}"));
        Err(Failure::new(
            FailureKind::Unreachable,
            format!("no answer within {}{awaited}", shown(limit)),
        ))
    })
}

async fn next_change<W: Watch>(watch: &mut Option<W>) -> Change {
    match watch {
        Some(watch) => watch.next().await,
        None => pending().await,
    }
}

async fn next_reply(request: &mut Option<Request>) -> (RequestId, Reply) {
    match request {
        Some(request) => request.await,
        None => pending().await,
    }
}
