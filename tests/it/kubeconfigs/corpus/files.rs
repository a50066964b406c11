//! Which files, contexts and namespaces, and what YAML may look like.

use super::{Case, USUAL};

pub(super) fn cases() -> Vec<Case> {
    [found(), merged(), written(), chosen()]
        .into_iter()
        .flatten()
        .collect()
}

/// Where kubeconfigs are looked for.
fn found() -> Vec<Case> {
    vec![
        Case::new("the usual file"),
        Case::bare("no file"),
        Case::new("KUBECONFIG is set and empty").env("KUBECONFIG", ""),
        Case::new("KUBECONFIG beats the usual file")
            .file("other", &USUAL.replace("{SERVER}", "{TWO}"))
            .env("KUBECONFIG", "{HOME}/other"),
        Case::new("KUBECONFIG is relative")
            .file("other", &USUAL.replace("{SERVER}", "{TWO}"))
            .env("KUBECONFIG", "other"),
        Case::new("KUBECONFIG names no file that there is").env("KUBECONFIG", "{HOME}/absent"),
        Case::new("KUBECONFIG names one file that there is not")
            .env("KUBECONFIG", "{HOME}/absent:{HOME}/.kube/config"),
        Case::new("KUBECONFIG names a directory").env("KUBECONFIG", "{HOME}/.kube"),
        Case::new("KUBECONFIG names nothing").env("KUBECONFIG", "/dev/null"),
        Case::new("KUBECONFIG has empty names").env("KUBECONFIG", ":{HOME}/.kube/config::"),
        Case::new("KUBECONFIG names a file twice")
            .env("KUBECONFIG", "{HOME}/.kube/config:{HOME}/.kube/config"),
        Case::new("the flag beats KUBECONFIG")
            .file("other", &USUAL.replace("{SERVER}", "{TWO}"))
            .env("KUBECONFIG", "{HOME}/.kube/config")
            .arguments(&["--kubeconfig", "other"]),
        Case::new("the flag names no file that there is").arguments(&["--kubeconfig", "absent"]),
        Case::new("the flag names a directory").arguments(&["--kubeconfig", ".kube"]),
        Case::new("an empty file").text(""),
        Case::new("an empty object").text("{}"),
    ]
}

/// Several files.
fn merged() -> Vec<Case> {
    let pair = |name, one: &str, two: &str| {
        Case::bare(name)
            .file("one", one)
            .file("two", two)
            .env("KUBECONFIG", "{HOME}/one:{HOME}/two")
    };
    let (cluster, rest) = USUAL.split_once("contexts:").expect("it has contexts");
    let other = USUAL.replace("{SERVER}", "{TWO}").replace("abc", "def");
    let without_current = USUAL.replace("current-context: here\n", "");
    vec![
        pair("the first of two files wins", USUAL, &other),
        pair(
            "one file has the cluster",
            cluster,
            &format!("contexts:{rest}"),
        ),
        pair(
            "the second file says which context",
            &without_current,
            "current-context: here\n",
        ),
        pair(
            "the current context of the first file is empty",
            &USUAL.replace("current-context: here", "current-context: \"\""),
            &other,
        ),
        pair(
            "the current context of the first file is null",
            &USUAL.replace("current-context: here", "current-context:"),
            &other,
        ),
        pair("an empty file first", "", USUAL),
        pair("an empty file second", USUAL, ""),
        pair("a broken file second", USUAL, "clusters: ["),
        pair("a broken file first", "clusters: [", USUAL),
        pair("a list second", USUAL, "[]"),
        pair(
            "two files of the same cluster do not complete each other",
            &USUAL.replace("    certificate-authority-data: {CA}\n", ""),
            USUAL,
        ),
        pair(
            "two files of the same user do not complete each other",
            &USUAL.replace("    token: abc\n", "    as: me\n"),
            USUAL,
        )
        .differs(ASKS),
        pair(
            "the second file has another kind",
            USUAL,
            &other.replace("kind: Config", "kind: Other"),
        ),
        pair(
            "the second file has another version",
            USUAL,
            &other.replace("apiVersion: v1", "apiVersion: v2"),
        ),
        pair(
            "a path is relative to its own file",
            "clusters: []\n",
            &USUAL.replace(
                "certificate-authority-data: {CA}",
                "certificate-authority: .kube/ca.pem",
            ),
        ),
    ]
}

/// How it is written.
fn written() -> Vec<Case> {
    let json = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": "{SERVER}", "certificate-authority-data": "{CA}"}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "ns"}}],
        "users": [{"name": "u", "user": {"token": "abc"}}]}"#;
    let other = USUAL.replace("{SERVER}", "{TWO}");
    vec![
        Case::new("JSON").text(json),
        Case::new("neither kind nor version")
            .replace("apiVersion: v1\n", "")
            .replace("kind: Config\n", ""),
        Case::new("no kind").replace("kind: Config\n", ""),
        Case::new("no version").replace("apiVersion: v1\n", ""),
        Case::new("another kind").replace("kind: Config", "kind: Pod"),
        Case::new("another version").replace("apiVersion: v1", "apiVersion: v2"),
        Case::new("a mark in front").text(&format!("\u{feff}{USUAL}")),
        Case::new("lines of Windows").text(&USUAL.replace('\n', "\r\n")),
        Case::new("a document's start").text(&format!("---\n{USUAL}")),
        Case::new("a comment first").text(&format!("# a remark\n---\n{USUAL}")),
        Case::new("a second document").text(&format!("{USUAL}---\n{other}")),
        Case::new("a second document that completes the first").text(&format!(
            "{}---\ncurrent-context: here\n",
            USUAL.replace("current-context: here\n", "")
        )),
        Case::new("a second document that is broken").text(&format!("{USUAL}---\nclusters: [\n")),
        Case::new("tabs").text(&USUAL.replace("    token", "\ttoken")),
        Case::new("fields that nobody knows").cluster_too("colour: red\nshape: {a: [1]}"),
        Case::new("fields in capitals").cluster("Server: {SERVER}\ncertificate-authority-data: {CA}"),
        Case::new("a repeated key, twice the same").user("token: abc\ntoken: abc"),
        Case::new("a repeated key, last one wins").user("token: def\ntoken: abc"),
        Case::new("a repeated list").text(&format!("{USUAL}users: []\n")),
        Case::new("a repeated cluster").replace(
            "contexts:",
            "- name: c\n  cluster:\n    server: {TWO}\n    certificate-authority-data: {CA}\ncontexts:",
        ),
        Case::new("a repeated user").text(&format!("{USUAL}- name: u\n  user: {{token: def}}\n")),
        Case::new("an anchor").text(
            &USUAL
                .replace("name: c\n", "name: &c c\n")
                .replace("cluster: c\n", "cluster: *c\n"),
        ),
        Case::new("a merged key").text(
            &USUAL
                .replace("- name: u\n  user:\n", "- name: u\n  user:\n    <<: *token\n")
                .replace("apiVersion", "x: &token {token: def}\napiVersion")
                .replace("    token: abc\n", ""),
        ),
        Case::new("a token that looks like a number").user("token: 123"),
        Case::new("a token that looks like a number, in quotes").user("token: '123'"),
        Case::new("a token that looks like a truth value").user("token: yes"),
        Case::new("a token that looks like a date").user("token: 2021-01-01"),
        Case::new("a token that looks like null").user("token: ~").differs(ASKS),
        Case::new("a user that looks like a number")
            .context("cluster: c\nuser: 1\nnamespace: ns")
            .replace("name: u", "name: 1"),
        Case::new("a truth value in quotes")
            .cluster("server: {SERVER}\ninsecure-skip-tls-verify: 'true'"),
        Case::new("a truth value of YAML 1.1")
            .cluster("server: {SERVER}\ninsecure-skip-tls-verify: yes"),
        Case::new("clusters as an object").text(&USUAL.replace("clusters:\n- name: c\n  cluster:", "clusters:\n  c:")),
        Case::new("lists that are null").text("clusters: null\nusers: null\ncontexts: null\n"),
        Case::new("preferences and extensions").text(&format!(
            "{USUAL}preferences: {{colors: true}}\nextensions:\n- name: x\n  extension: {{a: b}}\n"
        )),
        Case::new("preferences that are null").text(&format!("{USUAL}preferences:\n")),
        Case::new("extensions of every entry")
            .cluster_too("extensions:\n- name: x\n  extension: {a: b}")
            .context("cluster: c\nuser: u\nnamespace: ns\nextensions:\n- name: x\n  extension: {a: b}")
            .user("token: abc\nextensions:\n- name: x\n  extension: text"),
        Case::new("no text").text("\u{0}\u{1}\u{2}"),
        Case::new("prose").text("hello\n"),
        Case::new("a broken entry of another user")
            .text(&format!("{USUAL}- name: other\n  user: {{client-key-data: '%%'}}\n")).differs("an entry that is not used is no reason to refuse"),
        Case::new("a number in an entry of another user")
            .text(&format!("{USUAL}- name: other\n  user: {{token: 5}}\n")),
        Case::new("an entry without a name").text(&format!("{USUAL}- user: {{token: def}}\n")),
        Case::new("an entry that is null").text(&format!("{USUAL}- \n")),
    ]
}

/// Contexts and namespaces.
fn chosen() -> Vec<Case> {
    let two = format!(
        "{}- name: there\n  context: {{cluster: c, user: u, namespace: ns-there}}\nusers:{}",
        USUAL.split_once("users:").expect("it has users").0,
        USUAL.split_once("users:").expect("it has users").1
    );
    vec![
        Case::new("another context")
            .text(&two)
            .arguments(&["--context", "there"]),
        Case::new("a context that there is not").arguments(&["--context", "absent"]),
        Case::new("no current context").replace("current-context: here\n", ""),
        Case::new("no current context, but one is named")
            .replace("current-context: here\n", "")
            .arguments(&["--context", "here"]),
        Case::new("a current context that there is not")
            .replace("current-context: here", "current-context: absent"),
        Case::new("a context without a cluster").context("user: u"),
        Case::new("a context with an empty cluster").context("cluster: ''\nuser: u"),
        Case::new("a context with a cluster that there is not").context("cluster: absent\nuser: u"),
        Case::new("a context without a user")
            .context("cluster: c\nnamespace: ns")
            .differs(ASKS),
        Case::new("a context with an empty user")
            .context("cluster: c\nuser: ''\nnamespace: ns")
            .differs(ASKS),
        Case::new("a context with a null user")
            .context("cluster: c\nuser:\nnamespace: ns")
            .differs(ASKS),
        Case::new("a context with a user that there is not")
            .context("cluster: c\nuser: absent\nnamespace: ns"),
        Case::new("a context without a namespace").context("cluster: c\nuser: u"),
        Case::new("a context with an empty namespace")
            .context("cluster: c\nuser: u\nnamespace: ''"),
        Case::new("a context with a null namespace").context("cluster: c\nuser: u\nnamespace:"),
        Case::new("another context without a cluster")
            .replace("users:", "- name: other\n  context:\n    user: u\nusers:"),
        Case::new("a context that is null").replace(
            "  context:\n    cluster: c\n    user: u\n    namespace: ns\n",
            "  context:\n",
        ),
        Case::new("a namespace on the command line").arguments(&["-n", "flag"]),
        Case::new("POD_NAMESPACE beside a context's")
            .env("POD_NAMESPACE", "pod")
            .differs(POD_NAMESPACE),
        Case::new("POD_NAMESPACE and none of the context")
            .context("cluster: c\nuser: u")
            .env("POD_NAMESPACE", "pod")
            .differs(POD_NAMESPACE),
        Case::new("an empty POD_NAMESPACE").env("POD_NAMESPACE", ""),
    ]
}

const ASKS: &str = "kubectl asks on the terminal for a name and a password; lease-exec asks nobody, and \
                    sends no credentials, which are the server's to miss";
const POD_NAMESPACE: &str = "a pod's own namespace is said in its manifest by POD_NAMESPACE, as for \
                             every setting of lease-exec a variable beats the file";
