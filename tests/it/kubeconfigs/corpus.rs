//! The configurations. Each is the usual one, but for what its case says.
//!
//! `{SERVER}` and `{TWO}` stand for two servers, `{PLAIN}` for the first one without TLS, `{PORT}` for
//! its port; `{CA}`, `{CERT}` and `{KEY}` for what belongs to it in base64, with `-PEM` in PEM and with
//! `-LINES` in base64 on several lines; `{HOME}` for the home directory.

mod files;
mod pods;
mod servers;
mod users;

/// One configuration.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Names below the home directory, and texts.
    pub(crate) files: Vec<(String, String)>,
    pub(crate) env: Vec<(&'static str, String)>,
    /// What lease-exec is asked for on its command line.
    pub(crate) arguments: Vec<&'static str>,
    /// The same for kubectl.
    pub(crate) kubectl_arguments: Vec<&'static str>,
    /// Whether it is run where the directory `pod` is a service account's mount.
    pub(crate) is_pod: bool,
    /// The minor version of the first kubectl that knows all that is in it.
    pub(crate) since: u32,
    /// Why the two differ, if they do.
    pub(crate) reason: Option<&'static str>,
}

impl Case {
    /// The usual configuration: a server, its authority, a token and a namespace.
    fn new(name: &'static str) -> Self {
        Self {
            files: vec![(".kube/config".into(), USUAL.into())],
            ..Self::bare(name)
        }
    }

    /// No configuration at all.
    fn bare(name: &'static str) -> Self {
        Self {
            name,
            files: Vec::new(),
            env: Vec::new(),
            arguments: Vec::new(),
            kubectl_arguments: Vec::new(),
            is_pod: false,
            since: 0,
            reason: None,
        }
    }

    /// A pod with all that pods have.
    fn pod(name: &'static str) -> Self {
        Self {
            is_pod: true,
            ..Self::bare(name)
        }
        .file("pod/ca.crt", "{CA-PEM}")
        .file("pod/namespace", "ns-of-pod")
        .file("pod/token", "of-pod")
        .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        .env("KUBERNETES_SERVICE_PORT", "{PORT}")
    }

    /// The fields of the cluster.
    fn cluster(self, fields: &str) -> Self {
        self.replace(
            "    server: {SERVER}\n    certificate-authority-data: {CA}\n",
            &indented(fields),
        )
    }

    /// More fields for the cluster.
    fn cluster_too(self, fields: &str) -> Self {
        let fields = format!("server: {{SERVER}}\ncertificate-authority-data: {{CA}}\n{fields}");
        self.cluster(&fields)
    }

    /// The fields of the user.
    fn user(self, fields: &str) -> Self {
        self.replace("    token: abc\n", &indented(fields))
    }

    /// The fields of the context.
    fn context(self, fields: &str) -> Self {
        self.replace(
            "    cluster: c\n    user: u\n    namespace: ns\n",
            &indented(fields),
        )
    }

    fn replace(mut self, from: &str, to: &str) -> Self {
        let text = &mut self.files[0].1;
        assert!(text.contains(from), "{}: {from}", self.name);
        *text = text.replace(from, to);
        self
    }

    /// The whole kubeconfig.
    fn text(self, text: &str) -> Self {
        self.file(".kube/config", text)
    }

    fn file(mut self, name: &str, text: &str) -> Self {
        self.files.retain(|(other, _)| other != name);
        self.files.push((name.into(), text.into()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.files.retain(|(other, _)| other != name);
        self
    }

    fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.retain(|(other, _)| *other != name);
        self.env.push((name, value.into()));
        self
    }

    fn without_env(mut self, name: &str) -> Self {
        self.env.retain(|(other, _)| *other != name);
        self
    }

    fn arguments(mut self, arguments: &[&'static str]) -> Self {
        self.kubectl_arguments = arguments.to_vec();
        self.arguments = arguments.to_vec();
        self
    }

    fn since(mut self, minor: u32) -> Self {
        self.since = minor;
        self
    }

    /// The two differ, and for this reason.
    fn differs(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    [
        files::cases(),
        servers::cases(),
        users::cases(),
        pods::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Lines as they stand below `cluster:`, `user:` or `context:`.
fn indented(fields: &str) -> String {
    fields.lines().map(|line| format!("    {line}\n")).collect()
}

const USUAL: &str = "\
apiVersion: v1
kind: Config
current-context: here
clusters:
- name: c
  cluster:
    server: {SERVER}
    certificate-authority-data: {CA}
contexts:
- name: here
  context:
    cluster: c
    user: u
    namespace: ns
users:
- name: u
  user:
    token: abc
";
