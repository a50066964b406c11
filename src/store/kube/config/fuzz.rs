//! Made-up kubeconfigs: each is usable, or refused with one sentence.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{
    tests::{Home, kubeconfig},
    *,
};
use crate::fuzz;

/// How long one kubeconfig may take; a thousand times what it does.
const LIMIT: Duration = Duration::from_secs(20);

fn check(home: &Home, text: &[u8]) -> Result<(), TestCaseError> {
    fs::write(home.path().join(".kube/config"), text).expect("written");
    let began = Instant::now();
    let loaded = home.load(Source::default());
    prop_assert!(began.elapsed() < LIMIT, "it took {:?}", began.elapsed());
    if let Err(failure) = loaded {
        prop_assert_eq!(failure.kind, FailureKind::Misconfigured);
        prop_assert_eq!(failure.message.lines().count(), 1, "{:?}", failure.message);
        prop_assert!(failure.message.len() < 2_000, "{}", failure.message);
    }
    Ok(())
}

fn texts() -> Vec<Vec<u8>> {
    let texts = [
        kubeconfig("a", "", "token: abc"),
        kubeconfig(
            "a",
            ", certificate-authority-data: anVuaw==, insecure-skip-tls-verify: true",
            "client-certificate-data: anVuaw==, client-key-data: anVuaw==",
        ),
        kubeconfig("a", ", proxy-url: 'http://p:8080'", "username: u, password: p"),
        kubeconfig(
            "a",
            ", tls-server-name: x",
            "exec: {apiVersion: client.authentication.k8s.io/v1, command: x, args: [a], env: [{name: N, value: V}]}",
        ),
        kubeconfig("a", "", "tokenFile: config") + "---\nclusters: []\n",
        "{\"current-context\": \"a\", \"contexts\": [{\"name\": \"a\", \"context\": &c {\"cluster\": \"c\"}}]}".into(),
    ];
    texts.map(String::into_bytes).to_vec()
}

proptest! {
    #![proptest_config(fuzz::cases(500))]

    #[test]
    fn damaged_kubeconfig_is_usable_or_refused_with_one_sentence(text in fuzz::damaged(texts())) {
        check(&Home::new(), &text)?;
    }
}

#[test]
fn awkward_kubeconfigs_are_usable_or_refused_with_one_sentence() {
    let home = Home::new();
    let good = kubeconfig("a", "", "token: abc");
    let doubling: String = (1..40)
        .map(|level| format!("x{level}: &x{level} [*x{0}, *x{0}]\n", level - 1))
        .collect();
    let texts = [
        String::new(),
        "\n\n---\n---\n...\n".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        "a: &a [*a]".to_owned(),
        format!("{good}loop: &loop {{again: *loop}}\n"),
        format!("{good}loop: &loop\n  <<: *loop\n"),
        format!("{good}x0: &x0 [a, b]\n{doubling}"),
        format!(
            "{good}deep: {}{}\n",
            "[".repeat(100_000),
            "]".repeat(100_000)
        ),
        format!("{good}deep: {}\n", "{a: ".repeat(100_000)),
        format!("{good}{}", "- ".repeat(100_000)),
        format!("{good}long: {}\n", "x".repeat(5 << 20)),
        format!("{good}many:\n{}", "- a\n".repeat(200_000)),
        format!("{good}{}", good.repeat(50)),
        format!("---\n{good}").repeat(500),
        good.replace("users:", "people:"),
        good.replace("token: abc", "token: {a: b}"),
        good.replace("name: a", "name: [a]"),
        good.replace("https://", "https://user:password@"),
        good.replace("https://a.example:6443", "https://[::1"),
        good.replace("https://a.example:6443", "https://a.example:99999"),
        good.replace("https://a.example:6443", &"https://a".repeat(50_000)),
        good.replace("server:", "server: !!binary"),
        kubeconfig("a", ", certificate-authority-data: '%%%'", ""),
        kubeconfig("a", ", certificate-authority-data: !!binary '%%%'", ""),
        kubeconfig(
            "a",
            "",
            "client-certificate-data: '%%%', client-key-data: '%%%'",
        ),
        kubeconfig("a", "", "exec: {}"),
        kubeconfig("a", "", "auth-provider: {name: gcp}"),
    ];
    for text in texts {
        let shown: String = text.chars().take(200).collect();
        if let Err(error) = check(&home, text.as_bytes()) {
            panic!("{shown}: {error}");
        }
    }
}
