//! One lease, the nodes that contend for it, and what their witnesses wrote.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    mem,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    cgroup::TestCgroup,
    control_plane::{ControlPlane, User},
    history::{History, Term},
    janitor,
    network::{Namespace, Network},
    node::{self, Node, Setup},
    proxy::{Active, Link},
    random::Random,
    scenario::SECOND,
    witness::{self, Shape},
};

/// What arenas are made from.
pub(crate) struct Ground<'a> {
    pub(crate) network: &'a Network,
    pub(crate) control_plane: &'a ControlPlane,
    /// Where the evidence goes.
    pub(crate) directory: &'a Path,
}

/// How an arena is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) shape: Shape,
    pub(crate) nodes: Nodes,
}

/// Where instances run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// Beside the API server.
    Local,
    /// The same, each with a lease of its own, which breaks the promise.
    Apart,
    /// Each in a network of its own.
    Networks,
    /// Where the API server's name has two addresses, without a proxy in between.
    OfTwoServers,
}

/// The field where rounds are played. Dropping it ends all of its instances, and removes its
/// directory unless something was wrong.
pub(crate) struct Arena {
    pub(crate) nodes: Vec<Node>,
    pub(crate) history: History,
    pub(crate) random: Random,
    /// Exit codes that the present round explains.
    pub(crate) explained: Vec<i32>,
    /// Those of the round before, whose last effects may show only now.
    explained_before: Vec<i32>,
    directory: PathBuf,
    diary: File,
    problem: Option<String>,
}

/// What was wrong, in one sentence.
pub(crate) type Verdict<T = ()> = Result<T, String>;

/// Instances per arena.
const NODES: usize = 3;

/// How long anything may take that should take a few lease durations. Generous, because other tests
/// may have the machine; a round that passes never waits so long.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(10);

impl Arena {
    /// Makes a lease's place, and starts its nodes.
    pub(crate) fn new(ground: &Ground, setting: Setting, mut random: Random) -> Self {
        static ARENAS: AtomicUsize = AtomicUsize::new(0);
        let number = ARENAS.fetch_add(1, Ordering::Relaxed);
        let directory = ground.directory.join(format!("arena-{number}"));
        fs::create_dir_all(&directory).expect("a directory can be made");
        let file = |name: &str| File::create(directory.join(name)).expect("a file can be made");
        file("log");
        write!(file("counter"), "{:020}", 0).expect("a file can be written");
        let name = format!("arena-{number}");
        ground.control_plane.create_namespace(&name);
        // In every third, instances do not agree about the duration.
        let durations = match setting.nodes {
            // The default: nothing is to be lost, and a shorter one may be on a machine that is busy.
            Nodes::OfTwoServers => [15; NODES],
            _ => random.pick(&[[5, 5, 5], [5, 5, 5], [4, 5, 6]]),
        };
        let nodes = (0..NODES).map(|node| {
            let link = Link::open(
                ground.control_plane,
                node,
                &directory.join("proxy"),
                Random::new(random.next()),
            );
            let namespace = (setting.nodes == Nodes::Networks)
                .then(|| ground.network.namespace(&janitor::name()));
            // One of those with a network of its own does without the proxy.
            let port = match (setting.nodes, node) {
                (Nodes::Networks, 0) | (Nodes::OfTwoServers, _) => ground.control_plane.port(),
                _ => link.port(),
            };
            let host = match setting.nodes {
                Nodes::Networks => ground.network.address().to_string(),
                Nodes::Local | Nodes::Apart => "127.0.0.1".to_owned(),
                Nodes::OfTwoServers => "localhost".to_owned(),
            };
            let hosts = (setting.nodes == Nodes::OfTwoServers).then(|| {
                let path = directory.join("hosts");
                let text = format!("127.0.0.1 localhost\n{SECOND} localhost\n");
                fs::write(&path, text).expect("a file can be written");
                path
            });
            let url = format!("https://{host}:{port}");
            let lease = match setting.nodes {
                Nodes::Apart => format!("demo-{node}"),
                Nodes::Local | Nodes::Networks | Nodes::OfTwoServers => "demo".to_owned(),
            };
            let setup = Setup {
                lease,
                kubeconfig: ground.control_plane.kubeconfig_at(&url, &name, User::Admin),
                // What one leaves behind, no other must end.
                cgroup: TestCgroup::version_2(),
                directory: directory.clone(),
                hosts,
                shape: setting.shape,
            };
            let duration = Duration::from_secs(durations[node]);
            Node::new(node, link, namespace, duration, setup)
        });
        Self {
            nodes: nodes.collect(),
            history: History::new(directory.join("log")),
            diary: file("diary"),
            random,
            explained: Vec::new(),
            explained_before: Vec::new(),
            directory,
            problem: None,
        }
    }

    /// Begins a round that makes its choices by this seed.
    pub(crate) fn begin(&mut self, scenario: &str, seed: u64) {
        self.note(&format!("round {scenario} {seed}"));
        self.random = Random::new(seed);
        self.explained_before = mem::take(&mut self.explained);
    }

    /// The longest lease duration of its nodes.
    pub(crate) fn lease_duration(&self) -> Duration {
        let durations = self.nodes.iter().map(|node| node.lease_duration);
        durations.max().expect("there are nodes")
    }

    /// How many faults its proxies have let take effect so far.
    pub(crate) fn injected(&self) -> u64 {
        self.nodes.iter().map(|node| node.link.injected()).sum()
    }

    /// The network of one node.
    pub(crate) fn namespace(&self, node: usize) -> Verdict<&Namespace> {
        let namespace = self.nodes[node].namespace.as_ref();
        namespace.ok_or_else(|| "the node has no network of its own".to_owned())
    }

    /// Writes into the diary of this arena.
    pub(crate) fn note(&mut self, text: &str) {
        let time = witness::now().as_secs_f64();
        let _ = writeln!(self.diary, "{time:.4} {text}");
    }

    /// Starts whoever has ended, reads what is new, and says if something is wrong.
    pub(crate) fn look(&mut self) -> Verdict {
        for number in 0..self.nodes.len() {
            if let Some(status) = self.nodes[number].tend() {
                let how = node::describe(status);
                self.note(&format!("node {number} ended: {how}"));
                self.judge(number, status)?;
            }
        }
        self.history.refresh();
        match self.history.violation() {
            Some(violation) => Err(format!("the promise is broken: {violation}")),
            None => Ok(()),
        }
    }

    /// Lets so much time pass.
    pub(crate) fn pass(&mut self, time: Duration) -> Verdict {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.look()?;
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Waits for something, with a limit.
    pub(crate) fn wait_until<T>(
        &mut self,
        what: &str,
        mut condition: impl FnMut(&mut Self) -> Option<T>,
    ) -> Verdict<T> {
        let deadline = Instant::now() + LIMIT;
        loop {
            // Looked at first, so that the condition is tried once more after it.
            let is_last = Instant::now() >= deadline;
            self.look()?;
            if let Some(found) = condition(self) {
                return Ok(found);
            }
            if is_last {
                return Err(format!("waited {LIMIT:?} in vain until {what}"));
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until somebody runs and all others wait, and returns the term.
    pub(crate) fn settle(&mut self) -> Verdict<Term> {
        let since = witness::now();
        self.wait_until("one runs and the others wait", |arena| {
            let term = arena.history.current()?.clone();
            let is_calm = arena.nodes.iter().all(|node| {
                let messages = node.messages();
                let is_standby = messages.contains("somebody else holds the lease")
                    && !messages.contains("acquired the lease");
                node.front().is_some() && (is_standby || node.number == term.node)
            });
            (is_calm && term.counted > since).then_some(term)
        })
    }

    /// Waits until the command works, be it an old one or a new one.
    pub(crate) fn expect_progress(&mut self) -> Verdict {
        let since = witness::now();
        self.wait_until("the command works again", |arena| {
            (arena.history.current()?.counted > since).then_some(())
        })
    }

    /// Waits for a term after this one.
    pub(crate) fn expect_term_after(&mut self, token: u64) -> Verdict<Term> {
        self.wait_until("somebody takes over", |arena| {
            let term = arena.history.current()?;
            (term.token > token).then(|| term.clone())
        })
    }

    /// Makes these the active faults of one node's link.
    pub(crate) fn afflict(&mut self, node: usize, faults: &[Active]) {
        self.note(&format!("node {node}: {faults:?}"));
        self.nodes[node].link.set(faults);
    }

    /// Ends all faults of links.
    pub(crate) fn heal(&mut self) {
        for node in 0..self.nodes.len() {
            self.afflict(node, &[]);
        }
    }

    /// Keeps the evidence, and returns what to show of it.
    pub(crate) fn keep(&mut self, problem: &str) -> String {
        self.problem = Some(problem.to_owned());
        self.note(problem);
        let mut text = format!("{problem}\nall of it is in {}\n", self.directory.display());
        let mut show = |name: &str, lines: usize| {
            let content = fs::read_to_string(self.directory.join(name)).unwrap_or_default();
            let all = content.lines().collect::<Vec<_>>();
            let tail = all[all.len().saturating_sub(lines)..].join("\n");
            let _ = writeln!(text, "--- {name}\n{tail}");
        };
        show("diary", 40);
        show("log", 30);
        show("proxy", 60);
        for node in 0..self.nodes.len() {
            let prefix = format!("node-{node}-run-");
            let mut runs = fs::read_dir(&self.directory)
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| name.starts_with(&prefix))
                .collect::<Vec<_>>();
            runs.sort_by_key(|name| name[prefix.len()..].parse::<usize>().unwrap_or(0));
            for run in &runs[runs.len().saturating_sub(2)..] {
                show(run, 15);
            }
        }
        text
    }

    /// Whether an instance may end so.
    fn judge(&self, node: usize, status: ExitStatus) -> Verdict {
        use std::os::unix::process::ExitStatusExt;
        let is_expected = match (status.code(), status.signal()) {
            // The command's own, and a lost lease.
            (Some(code), _) => {
                let explained = self.explained.iter().chain(&self.explained_before);
                [0, 79].iter().chain(explained).any(|known| *known == code)
            }
            // We and the kernel's timers send SIGKILL, and the witness may die of either.
            (None, signal) => [Some(9), Some(15)].contains(&signal),
        };
        match is_expected {
            true => Ok(()),
            false => Err(format!(
                "node {node} ended with {}, which nothing explains",
                node::describe(status)
            )),
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.nodes.clear();
        if self.problem.is_none() && !thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}
