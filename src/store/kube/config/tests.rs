use std::fs;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use tempfile::TempDir;

use super::*;

pub(super) struct Home {
    directory: TempDir,
    environment: Environment,
}

impl Home {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(".kube")).unwrap();
        let environment = Environment {
            home: Some(directory.path().to_owned()),
            service_account: directory.path().join("account"),
            ..Environment::default()
        };
        Self {
            directory,
            environment,
        }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn load(&self, source: Source) -> Result<ClusterConfig, Failure> {
        ClusterConfig::load_in(source, self.environment.clone())
    }

    fn message(&self, source: Source) -> String {
        let failure = self.load(source).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Misconfigured);
        assert!(!failure.message.contains('\n'), "{}", failure.message);
        let home = self.directory.path().display().to_string();
        failure.message.replace(&home, "HOME")
    }
}

pub(super) fn kubeconfig(name: &str, cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {name}\n\
         clusters: [{{name: c-{name}, cluster: {{server: 'https://{name}.example:6443'{cluster}}}}}]\n\
         contexts: [{{name: {name}, context: {{cluster: c-{name}, user: u, namespace: ns-{name}}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\n"
    )
}

fn named(path: &Path) -> Source {
    Source {
        kubeconfig: Some(path.to_owned()),
        ..Source::default()
    }
}

#[test]
fn usual_file_is_used_when_nothing_else_is_said() {
    let home = Home::new();
    home.file(".kube/config", &kubeconfig("home", "", "token: abc"));
    let config = home.load(Source::default()).unwrap();
    assert_eq!(config.server(), "https://home.example:6443");
    assert_eq!(config.context_namespace(), Some("ns-home"));
    assert!(!config.config.default_retry);
}

#[test]
fn password_in_the_servers_url_is_not_shown() {
    let home = Home::new();
    let text = kubeconfig("home", "", "token: abc");
    for (user, shown) in [
        ("https://me:secret@", "https://home.example:6443"),
        ("https://a@b:secret@", "https://home.example:6443"),
        ("ftp://me:secret@", "ftp://home.example:6443"),
    ] {
        home.file(".kube/config", &text.replace("https://", user));
        match home.load(Source::default()) {
            Ok(config) => assert_eq!(config.server(), shown),
            Err(failure) => {
                assert!(failure.message.contains(shown), "{}", failure.message);
                assert!(!failure.message.contains("secret"), "{}", failure.message);
            }
        }
    }
}

#[test]
fn variable_beats_the_usual_file_and_the_flag_beats_both() {
    let mut home = Home::new();
    home.file(".kube/config", &kubeconfig("home", "", ""));
    let listed = home.file("listed", &kubeconfig("listed", "", ""));
    let flagged = home.file("flagged", &kubeconfig("flagged", "", ""));
    home.environment.kubeconfig = Some(listed.into());
    assert_eq!(
        home.load(Source::default()).unwrap().server(),
        "https://listed.example:6443"
    );
    assert_eq!(
        home.load(named(&flagged)).unwrap().server(),
        "https://flagged.example:6443"
    );
}

#[test]
fn listed_files_are_merged_and_absent_ones_passed_over() {
    let mut home = Home::new();
    let one = home.file("one", &kubeconfig("one", "", ""));
    let two = home.file("two", &kubeconfig("two", "", ""));
    let absent = home.path().join("absent");
    let list = [Path::new(""), &one, &absent, &two].map(|path| path.display().to_string());
    let list = list.join(":");
    home.environment.kubeconfig = Some(list.into());
    assert_eq!(
        home.load(Source::default()).unwrap().server(),
        "https://one.example:6443"
    );
    let source = Source {
        context: Some("two".into()),
        ..Source::default()
    };
    assert_eq!(
        home.load(source).unwrap().server(),
        "https://two.example:6443"
    );
}

#[test]
fn every_mistake_is_one_sentence_and_nothing_falls_back() {
    let mut home = Home::new();
    // With a service account at hand: were anything to fall back, it would be to that.
    home.environment.service.0 = "10.0.0.1".into();
    let asked = |context: &str| Source {
        context: Some(context.into()),
        ..Source::default()
    };
    let absent = home.directory.path().join("absent");
    assert_eq!(
        home.message(named(&absent)),
        "can't read the kubeconfig HOME/absent: no such file or directory"
    );
    assert_eq!(
        home.message(asked("x")),
        "there is no kubeconfig to find the context \"x\" in"
    );

    let good = home.file("good", &kubeconfig("good", "", ""));
    let unknown = Source {
        kubeconfig: Some(good),
        ..asked("x")
    };
    assert_eq!(home.message(unknown), "HOME/good has no context \"x\"");
    for (text, expected) in [
        (
            "users: [{name: u}]",
            "HOME/.kube/config sets no current-context, and none was asked for",
        ),
        (
            "{current-context: a}",
            "HOME/.kube/config has no context \"a\"",
        ),
        (
            "{current-context: a, contexts: [{name: a, context: {cluster: c, user: u}}]}",
            "HOME/.kube/config has no cluster \"c\", which its context names",
        ),
        (
            &kubeconfig("a", "", "").replace("https://a.example:6443", "ftp://a.example"),
            "HOME/.kube/config has no usable server: \"ftp://a.example\" is not an http:// or https:// URL",
        ),
        (
            &kubeconfig("a", ", certificate-authority: ca.pem", ""),
            "can't read the certificate-authority HOME/.kube/ca.pem: no such file or directory",
        ),
        (
            &kubeconfig("a", ", certificate-authority-data: '%'", ""),
            "the certificate-authority-data of the cluster \"c-a\" in HOME/.kube/config is not base64",
        ),
        (
            &kubeconfig("a", "", "client-certificate: c.pem, client-key: k.pem"),
            "can't read the client-certificate HOME/.kube/c.pem: no such file or directory",
        ),
        (
            &kubeconfig("a", "", "tokenFile: token"),
            "can't read the token HOME/.kube/token: no such file or directory",
        ),
        (
            &kubeconfig("a", "", "token: \"a\\tb\\nc\""),
            "the user \"u\" in HOME/.kube/config has a token with characters that no token can have",
        ),
        (
            &kubeconfig(
                "a",
                "",
                "auth-provider: {name: gcp, config: {cmd-path: /bin/gcloud}}",
            ),
            "the auth-provider \"gcp\" of the user is not supported; use the credential plugin \
             gke-gcloud-auth-plugin (an exec user) instead",
        ),
        (
            &kubeconfig(
                "a",
                "",
                "auth-provider: {name: oidc, config: {client-id: x}}",
            ),
            "the auth-provider \"oidc\" of the user has no id-token",
        ),
        (
            &kubeconfig(
                "a",
                "",
                "auth-provider: {name: oidc, config: {id-token: \"a\\nb\"}}",
            ),
            "the user \"u\" in HOME/.kube/config has a token with characters that no token can have",
        ),
        (
            &kubeconfig("a", ", proxy-url: 'socks4://p'", ""),
            "the proxy-url of the context \"a\" names a proxy of the kind socks4://, but only http, https, socks5 \
             and socks5h are supported",
        ),
    ] {
        home.file(".kube/config", text);
        assert_eq!(home.message(Source::default()), expected);
    }
    home.file(".kube/config", "clusters: [");
    let message = home.message(Source::default());
    assert!(
        message.starts_with("HOME/.kube/config is not a kubeconfig: "),
        "{message}"
    );

    let list = ["a", "b"].map(|name| home.path().join(name).display().to_string());
    home.environment.kubeconfig = Some(list.join(":").into());
    let expected = "$KUBECONFIG names HOME/a and HOME/b, which does not exist";
    assert_eq!(home.message(Source::default()), expected);
}

#[test]
fn file_without_an_end_is_refused() {
    let home = Home::new();
    let zeros = Path::new("/dev/zero");
    assert_eq!(
        home.message(named(zeros)),
        "the kubeconfig /dev/zero is longer than 16 MiB"
    );
    for (cluster, user, what) in [
        (
            ", certificate-authority: /dev/zero",
            "",
            "certificate-authority",
        ),
        (
            "",
            "client-certificate: /dev/zero, client-key: k",
            "client-certificate",
        ),
        (
            "",
            "client-certificate-data: anVuaw==, client-key: /dev/zero",
            "client-key",
        ),
        ("", "tokenFile: /dev/zero", "token"),
    ] {
        home.file(".kube/config", &kubeconfig("a", cluster, user));
        let expected = format!("the {what} /dev/zero is longer than 16 MiB");
        assert_eq!(home.message(Source::default()), expected);
    }
}

#[test]
fn certificate_authority_that_is_none_is_named() {
    let home = Home::new();
    let pem = |contents: &str| {
        format!("-----BEGIN CERTIFICATE-----\n{contents}\n-----END CERTIFICATE-----\n")
    };
    let none = "holds no certificate in PEM";
    let broken = "can't be used: ";
    for (text, problem) in [
        (String::new(), none),
        ("junk".to_owned(), none),
        ("\0\u{ff}".to_owned(), none),
        ("-----BEGIN CERTIFICATE-----\nabc".to_owned(), none),
        (pem("%%"), none),
        (pem("").replace("CERTIFICATE", "PRIVATE KEY"), none),
        (pem(""), broken),
        (pem("anVuaw=="), broken),
    ] {
        home.file(".kube/ca.pem", &text);
        let cluster = ", certificate-authority: ca.pem";
        home.file(".kube/config", &kubeconfig("a", cluster, ""));
        let expected = format!("the certificate-authority HOME/.kube/ca.pem {problem}");
        let message = home.message(Source::default());
        assert!(message.starts_with(&expected), "{text:?}: {message}");

        if text.is_empty() {
            continue;
        }
        let data = BASE64.encode(&text);
        let cluster = format!(", certificate-authority-data: {data}");
        home.file(".kube/config", &kubeconfig("a", &cluster, ""));
        let expected = format!(
            "the certificate-authority-data of the cluster \"c-a\" in HOME/.kube/config {problem}"
        );
        let message = home.message(Source::default());
        assert!(message.starts_with(&expected), "{text:?}: {message}");
    }
    // Fields without a value are not there, as for kubectl.
    let cluster = ", certificate-authority: '', certificate-authority-data: ''";
    home.file(".kube/config", &kubeconfig("a", cluster, ""));
    assert_eq!(home.load(Source::default()).unwrap().config.root_cert, None);
}

#[test]
fn usable_certificate_authority_is_taken_up_with_its_client_certificate() {
    let home = Home::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key);
    let pem = certificate.unwrap().pem();
    home.file(".kube/ca.pem", &format!("a remark\n{pem}{pem}"));
    home.file(".kube/c.pem", &pem);
    home.file(".kube/k.pem", &key.serialize_pem());
    let cluster = ", certificate-authority: ca.pem";
    let user = "client-certificate: c.pem, client-key: k.pem";
    home.file(".kube/config", &kubeconfig("a", cluster, user));
    let mut config = home.load(Source::default()).unwrap();
    for (file, text) in [("ca.pem", pem.as_str()), ("c.pem", &pem), ("k.pem", "new")] {
        assert!(!config.is_outdated());
        home.file(&format!(".kube/{file}"), &format!("{text}\n"));
        assert!(config.is_outdated(), "{file} is not looked after");
        config = config.reload().unwrap();
    }
    let user = &config.config.auth_info;
    let read = |data: &str| String::from_utf8(BASE64.decode(data).unwrap()).unwrap();
    let certificate = user.client_certificate_data.as_deref().unwrap();
    assert_eq!(read(certificate), format!("{pem}\n"));
    let key = user.client_key_data.as_ref().unwrap();
    assert_eq!(read(key.expose_secret()), "new\n");
}

#[test]
fn kubeconfig_of_windows_is_read_and_a_torn_one_refused() {
    let home = Home::new();
    let text = kubeconfig("a", "", "token: abc");
    let path = home.directory.path().join(".kube/config");
    let units = |to: fn(u16) -> [u8; 2], mark: u16| -> Vec<u8> {
        let units = std::iter::once(mark).chain(text.encode_utf16());
        units.flat_map(to).collect()
    };
    let with_mark = ["\u{feff}", &text].concat().into_bytes();
    for bytes in [
        units(u16::to_le_bytes, 0xfeff),
        units(u16::to_be_bytes, 0xfeff),
        with_mark,
    ] {
        fs::write(&path, bytes).unwrap();
        let config = home.load(Source::default()).unwrap();
        assert_eq!(config.server(), "https://a.example:6443");
    }
    for bytes in [
        &b"\xff\xfea"[..],
        b"\xfe\xffa\0b",
        b"\xff\xfe\x00\xd8",
        b"\xef\xbb\xbf\xff",
        b"\x80",
    ] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(
            home.message(Source::default()),
            "HOME/.kube/config is not a kubeconfig: it is no text in UTF-8 or UTF-16"
        );
    }
}

#[test]
fn relative_paths_start_from_the_kubeconfig() {
    let home = Home::new();
    let commands = [
        ("./plugin", "HOME/.kube/./plugin"),
        ("plugin", "plugin"),
        ("/plugin", "/plugin"),
    ];
    for (written, meant) in commands {
        let exec =
            format!("exec: {{apiVersion: client.authentication.k8s.io/v1, command: {written}}}");
        home.file(".kube/config", &kubeconfig("home", "", &exec));
        let command = home.load(Source::default()).unwrap().exec.unwrap().command;
        let home = home.directory.path().display().to_string();
        assert_eq!(command.unwrap().replace(&home, "HOME"), meant);
    }
}

#[test]
fn outside_a_pod_and_without_a_kubeconfig_no_cluster_is_configured() {
    let message = Home::new().message(Source::default());
    assert!(
        message.starts_with("no cluster is configured: "),
        "{message}"
    );
}

#[test]
fn namespace_comes_from_the_first_that_names_one() {
    let home = Home::new();
    home.file(".kube/config", &kubeconfig("home", "", ""));
    let mut config = home.load(Source::default()).unwrap();
    assert_eq!(config.namespace(Some("flag"), Some("pod")), "flag");
    assert_eq!(config.namespace(None, Some("pod")), "pod");
    assert_eq!(config.namespace(Some(""), Some("")), "ns-home");
    config.context_namespace = None;
    assert_eq!(config.namespace(None, None), "default");
    fs::create_dir(&config.environment.service_account).unwrap();
    home.file("account/namespace", "ops\n");
    assert_eq!(config.namespace(None, None), "ops");
}

#[test]
fn token_file_is_read_trimmed_and_beats_the_token_beside_it() {
    let home = Home::new();
    home.file(
        ".kube/config",
        &kubeconfig("home", "", "tokenFile: token, token: inline"),
    );
    home.file(".kube/token", " fresh\n");
    let config = home.load(Source::default()).unwrap();
    assert_eq!(config.token.unwrap().header(), "Bearer fresh");
    assert_eq!(config.config.auth_info.token_file, None);
}

#[test]
fn user_is_known_by_one_of_token_password_and_id_token() {
    let home = Home::new();
    let oidc = "auth-provider: {name: oidc, config: {id-token: abc}}";
    for (user, expected) in [
        ("token: abc", "Bearer abc"),
        (oidc, "Bearer abc"),
        ("username: me, password: secret", "Basic bWU6c2VjcmV0"),
        ("username: me", "Basic bWU6"),
        (&format!("token: other, {oidc}"), "Bearer other"),
    ] {
        home.file(".kube/config", &kubeconfig("home", "", user));
        let config = home.load(Source::default()).unwrap();
        assert_eq!(config.token.unwrap().header(), expected);
        let left = config.config.auth_info;
        assert!(left.auth_provider.is_none() && left.token.is_none() && left.username.is_none());
    }
}

#[test]
fn proxy_of_the_kubeconfig_beats_the_environment_and_no_proxy() {
    let mut home = Home::new();
    home.environment.proxies = ProxyVariables {
        https: Some("http://variable:1".into()),
        http: None,
        exceptions: None,
    };
    home.file(".kube/config", &kubeconfig("home", "", ""));
    let proxy = |home: &Home| {
        home.load(Source::default())
            .unwrap()
            .proxy
            .map(|proxy| proxy.uri.to_string())
    };
    assert_eq!(proxy(&home).as_deref(), Some("http://variable:1/"));
    home.environment.proxies.exceptions = Some(".example".into());
    assert_eq!(proxy(&home), None);
    home.file(
        ".kube/config",
        &kubeconfig("home", ", proxy-url: 'http://file:2'", ""),
    );
    assert_eq!(proxy(&home).as_deref(), Some("http://file:2/"));
}

#[test]
fn impersonation_replaces_the_user_of_the_kubeconfig() {
    let home = Home::new();
    home.file(".kube/config", &kubeconfig("home", "", "as: somebody"));
    let source = Source {
        impersonate: Some("me".into()),
        impersonate_groups: vec!["us".into()],
        ..Source::default()
    };
    let user = home.load(source).unwrap().config.auth_info;
    assert_eq!(user.impersonate.as_deref(), Some("me"));
    assert_eq!(user.impersonate_groups, Some(vec!["us".to_owned()]));
    home.file(".kube/config", &kubeconfig("home", "", "token: abc"));
    let groups_only = Source {
        impersonate_groups: vec!["us".into()],
        ..Source::default()
    };
    assert_eq!(
        home.message(groups_only),
        "the user \"u\" in HOME/.kube/config acts as a group, uid or more of a user (as-groups, as-uid, \
         as-user-extra), but not as a user (as)"
    );
}

#[test]
fn changed_file_is_noticed_and_its_credentials_are_read() {
    let home = Home::new();
    home.file(".kube/config", &kubeconfig("home", "", "tokenFile: token"));
    home.file(".kube/token", "old");
    let config = home.load(Source::default()).unwrap();
    assert!(!config.is_outdated());
    home.file(".kube/token", "newer");
    assert!(config.is_outdated());
    let config = config.reload().unwrap();
    assert!(!config.is_outdated());
    assert_eq!(config.token.unwrap().header(), "Bearer newer");
}

#[test]
fn reload_stays_with_its_context_and_refuses_another_server() {
    let home = Home::new();
    let both = |current: &str, server: &str| {
        let text = kubeconfig("home", "", "").replace("https://home.example:6443", server);
        let text = text
            .replace(
                "current-context: home",
                &format!("current-context: {current}"),
            )
            .replace(
                "contexts: [",
                "contexts: [{name: other, context: {cluster: c-home, user: u}}, ",
            );
        home.file(".kube/config", &text);
    };
    both("home", "https://one");
    let config = home.load(Source::default()).unwrap();
    both("other", "https://one");
    assert_eq!(config.reload().unwrap().server(), "https://one");
    both("other", "https://two");
    let failure = config.reload().unwrap_err();
    assert_eq!(
        failure.message,
        "the configuration leads to https://two now instead of https://one"
    );
}

#[test]
fn credential_plugin_is_set_aside_and_not_run() {
    let home = Home::new();
    let exec = "exec: {apiVersion: client.authentication.k8s.io/v1, command: /nonexistent/plugin}";
    home.file(".kube/config", &kubeconfig("home", "", exec));
    let config = home.load(Source::default()).unwrap();
    assert_eq!(
        config.exec.unwrap().command.as_deref(),
        Some("/nonexistent/plugin")
    );
    assert!(config.config.auth_info.exec.is_none());
}
