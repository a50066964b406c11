//! Kubeconfigs and pods, each given to the real kubectl and to lease-exec: both reach the same server
//! by the same way, as the same user, in the same namespace, or both refuse.
//!
//! Where they differ on purpose, the case in [`corpus`] says why.

mod corpus;
pub(crate) mod recorder;

use std::{
    collections::HashMap,
    fs,
    process::{Command, Output},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, date_time_ymd};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tempfile::TempDir;

use self::{
    corpus::Case,
    recorder::{Recorder, Request},
};
use crate::control_plane::{Authority, ControlPlane, Identity};

#[test]
fn it_does_what_kubectl_does_with_the_same_configuration() {
    let version = ControlPlane::kubectl_minor_version();
    let mut cases = corpus::cases();
    cases.retain(|case| case.since <= version);
    let parts = Parts::make();
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    let [on_purpose, refused] = [(), ()].map(|()| Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let comparison = compare(case, &parts);
                    let list = match (comparison.is_as_said(case), case.reason) {
                        (false, _) => &wrong,
                        (true, Some(_)) => &on_purpose,
                        (true, None) if comparison.lease_exec.request.is_none() => &refused,
                        (true, None) => continue,
                    };
                    let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
                    list.push(format!("{}: {comparison}", case.name));
                }
            });
        }
    });
    eprintln!("{} cases, kubectl 1.{version}", cases.len());
    let [wrong, on_purpose, refused] = [wrong, on_purpose, refused]
        .map(|list| list.into_inner().unwrap_or_else(PoisonError::into_inner));
    for (what, list) in [
        ("differ on purpose", on_purpose),
        ("are refused by both", refused),
    ] {
        eprintln!("{} {what}:\n{}\n", list.len(), list.join("\n"));
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

/// What one program did.
#[derive(Debug)]
struct Outcome {
    /// `None` if it refused, or got no connection that it trusts.
    request: Option<Request>,
    code: Option<i32>,
    said: String,
}

struct Comparison {
    kubectl: Outcome,
    lease_exec: Outcome,
}

impl Comparison {
    /// Whether the two are the same, or differ as the case says, and a refusal is one that a user
    /// can do something with.
    fn is_as_said(&self, case: &Case) -> bool {
        let same = self.kubectl.request == self.lease_exec.request;
        let refused = self.lease_exec.request.is_none();
        let good = !refused || is_good_message(&self.lease_exec.said);
        same == case.reason.is_none() && good
    }
}

/// One line that gives no offsets and no advice for programmers.
fn is_good_message(said: &str) -> bool {
    said.lines().count() == 1
        && !["offset", "DuplicateKeyPolicy", "symbol", "panicked"]
            .iter()
            .any(|word| said.contains(word))
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, outcome) in [("kubectl", &self.kubectl), ("lease-exec", &self.lease_exec)] {
            match &outcome.request {
                Some(request) => write!(to, "\n  {name}: {request:?}")?,
                None => write!(to, "\n  {name} ({:?}): {}", outcome.code, outcome.said)?,
            }
        }
        Ok(())
    }
}

fn compare(case: &Case, parts: &Parts) -> Comparison {
    let kubectl = run(case, parts, |home| {
        let mut command = vec![ControlPlane::kubectl_program().display().to_string()];
        command.extend(["auth", "can-i", "--list"].map(String::from));
        command.extend(case.kubectl_arguments.iter().map(|word| home.fill(word)));
        command
    });
    let lease_exec = run(case, parts, |home| {
        let mut command = vec![env!("CARGO_BIN_EXE_lease-exec").to_owned()];
        command.extend(["-q", "--lease", "x", "--no-wait"].map(String::from));
        command.extend(case.arguments.iter().map(|word| home.fill(word)));
        command.extend(["--", "true"].map(String::from));
        command
    });
    Comparison {
        kubectl,
        lease_exec,
    }
}

fn run(case: &Case, parts: &Parts, words: impl Fn(&Home<'_>) -> Vec<String>) -> Outcome {
    let tls = &parts.servers;
    let home = Home {
        directory: TempDir::new().expect("a temporary directory can be made"),
        one: Recorder::start("one", tls.clone()),
        two: Recorder::start("two", tls.clone()),
        parts,
    };
    for (name, text) in parts.files().into_iter().chain(case.files.clone()) {
        let path = home.directory.path().join(name);
        let directory = path.parent().expect("it is in the directory");
        fs::create_dir_all(directory).expect("a directory can be made");
        fs::write(path, home.fill(&text)).expect("a file can be written");
    }
    // Neither may take longer than the whole test should.
    let mut argv = vec!["timeout".to_owned(), "30".to_owned()];
    if case.is_pod {
        argv.extend(["unshare", "--mount", "--", "sh", "-c", POD, "sh"].map(String::from));
    }
    argv.extend(words(&home));
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", home.directory.path());
    command.current_dir(home.directory.path());
    for (name, value) in &case.env {
        command.env(name, home.fill(value));
    }
    let output = command.output().expect("it can be started");
    home.outcome(&output)
}

/// Mounts the directory `pod` where a pod finds its service account, for itself alone.
const POD: &str = "mount -t tmpfs pod /run && mkdir -p /run/secrets/kubernetes.io && \
                   ln -s \"$HOME/pod\" /run/secrets/kubernetes.io/serviceaccount && exec \"$@\"";

/// Where one program runs.
struct Home<'a> {
    directory: TempDir,
    one: Recorder,
    two: Recorder,
    parts: &'a Parts,
}

impl Home<'_> {
    /// Puts what only this run knows into a text.
    fn fill(&self, text: &str) -> String {
        let home = self.directory.path().display().to_string();
        let text = text
            .replace("{SERVER}", "https://127.0.0.1:{PORT}")
            .replace("{TWO}", "https://127.0.0.1:{PORT2}")
            .replace("{PLAIN}", "http://127.0.0.1:{PORT}")
            .replace("{PORT}", &self.one.port.to_string())
            .replace("{PORT2}", &self.two.port.to_string())
            .replace("{HOME}", &home);
        self.parts.fill(text)
    }

    fn outcome(&self, output: &Output) -> Outcome {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Outcome {
            request: self
                .one
                .first()
                .or(self.two.first())
                .map(|request| self.plain(request)),
            code: output.status.code(),
            said: self.without_names(&said),
        }
    }

    /// Without what differs between two runs.
    fn plain(&self, request: Request) -> Request {
        let way = request.way.iter().map(|hop| self.without_names(hop));
        Request {
            way: way.collect(),
            ..request
        }
    }

    fn without_names(&self, text: &str) -> String {
        text.replace(&self.one.port.to_string(), "PORT")
            .replace(&self.two.port.to_string(), "PORT2")
            .replace(&self.directory.path().display().to_string(), "HOME")
    }
}

/// Certificates and what stands for them in the cases' texts.
struct Parts {
    servers: Arc<ServerConfig>,
    authority: String,
    other_authority: String,
    one: Identity,
    other: Identity,
    /// Of servers in none of whose authorities anything trusts, by the names that they are asked by.
    odd: Vec<(&'static str, Identity)>,
}

impl Parts {
    fn make() -> Self {
        let authority = Authority::new();
        let server = authority.server(&[std::net::Ipv4Addr::LOCALHOST]);
        let odd = odd_servers();
        Self {
            servers: server_config(&authority, &server, &odd),
            odd,
            one: authority.client("user-one", &[]),
            other: authority.client("user-other", &[]),
            authority: authority.certificate(),
            other_authority: Authority::new().certificate(),
        }
    }

    /// What is in every home.
    fn files(&self) -> Vec<(String, String)> {
        let texts = [
            (".kube/ca.pem", "{CA-PEM}"),
            (".kube/c.pem", "{CERT-PEM}"),
            (".kube/k.pem", "{KEY-PEM}"),
            (".kube/token", "from-file\n"),
        ];
        texts.map(|(name, text)| (name.into(), text.into())).into()
    }

    fn fill(&self, text: String) -> String {
        let parts = [
            ("CA", &self.authority),
            ("OTHER-CA", &self.other_authority),
            ("CERT", &self.one.certificate),
            ("KEY", &self.one.key),
            ("CERT2", &self.other.certificate),
            ("KEY2", &self.other.key),
        ];
        let odd = self.odd.iter();
        let odd = odd.map(|(name, identity)| (*name, &identity.certificate));
        parts
            .into_iter()
            .chain(odd)
            .fold(text, |text, (name, pem)| {
                let data = BASE64.encode(pem);
                let lines: Vec<&str> = data
                    .as_bytes()
                    .chunks(64)
                    .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
                    .collect();
                text.replace(&format!("{{{name}}}"), &data)
                    .replace(&format!("{{{name}-PEM}}"), pem)
                    // Continued so deeply that it belongs to any field.
                    .replace(&format!("{{{name}-LINES}}"), &lines.join("\n            "))
            })
    }
}

/// Certificates to be pinned, but for the last one's authority.
fn odd_servers() -> Vec<(&'static str, Identity)> {
    let unknown = Authority::new();
    let strong = Authority::that_signs_by(&rcgen::PKCS_ECDSA_P521_SHA512);
    let odd = |name, is_its_own_authority, change: fn(&mut CertificateParams)| {
        (name, unknown.odd_server(name, is_its_own_authority, change))
    };
    let clients: fn(&mut CertificateParams) =
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let past: fn(&mut CertificateParams) = |params| params.not_after = date_time_ymd(2020, 1, 1);
    vec![
        odd("own.test", true, |_| {}),
        odd("leaf.test", false, |_| {}),
        odd("own-clients.test", true, clients),
        odd("leaf-clients.test", false, clients),
        odd("own-past.test", true, past),
        odd("leaf-past.test", false, past),
        (
            "strong.test",
            strong.odd_server("strong.test", false, |_| {}),
        ),
    ]
}

/// Shows the certificate for the name that it is asked by.
#[derive(Debug)]
struct ByName {
    others: HashMap<&'static str, Arc<CertifiedKey>>,
    usual: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let other = hello.server_name().and_then(|name| self.others.get(name));
        Some(other.unwrap_or(&self.usual).clone())
    }
}

fn server_config(
    authority: &Authority,
    server: &Identity,
    odd: &[(&'static str, Identity)],
) -> Arc<ServerConfig> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.certificate().as_bytes());
    roots
        .add(root.expect("it is PEM"))
        .expect("it is an authority's");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()
        .expect("the authority can be used");
    let certified = |identity: &Identity| {
        let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes());
        let key = provider.key_provider.load_private_key(key.expect("PEM"));
        let key = key.expect("a key of a kind that is known");
        Arc::new(CertifiedKey::new(vec![certificate.expect("PEM")], key))
    };
    let by_name = ByName {
        others: odd
            .iter()
            .map(|(name, identity)| (*name, certified(identity)))
            .collect(),
        usual: certified(server),
    };
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has both versions of TLS")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(by_name));
    Arc::new(config)
}

/// kubectl waits for answers as lease-exec does.
const THREADS: usize = 8;
