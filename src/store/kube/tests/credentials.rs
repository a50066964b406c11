//! Credentials that change, and those that take their time.

use super::*;

fn sent_token(seen: &Seen) -> &str {
    let header = seen
        .headers
        .iter()
        .find_map(|line| line.strip_prefix("authorization: Bearer "));
    header.unwrap_or_default()
}

#[tokio::test]
async fn refused_token_is_read_again_before_the_next_attempt() {
    let server = Server::new([
        status(401, "Unauthorized", "Unauthorized", json!({})),
        found("41"),
    ]);
    let token = server.directory.path().join("token");
    fs::write(&token, "old\n").unwrap();
    let store = server.store_as("tokenFile: token");
    // As long as the old and as old: nothing but the refusal tells that it is another.
    let file = fs::File::options().write(true).open(&token).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    fs::write(&token, "new\n").unwrap();
    file.set_modified(modified).unwrap();

    let refused = store.read().await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::Unauthorized);
    store.read().await.unwrap();
    let seen = server.seen();
    assert_eq!((sent_token(&seen[0]), sent_token(&seen[1])), ("old", "new"));
}

#[tokio::test]
async fn changed_token_is_taken_up_without_a_refusal_or_a_wait() {
    let server = Server::new((0..1000).map(|_| found("41")));
    let token = server.directory.path().join("token");
    fs::write(&token, "old").unwrap();
    let store = server.store_as("tokenFile: token");
    store.read().await.unwrap();
    fs::write(&token, "another").unwrap();
    for _ in 0..999 {
        store.read().await.unwrap();
        if sent_token(server.seen().last().unwrap()) == "another" {
            return;
        }
    }
    panic!("the new token was never sent");
}

#[tokio::test]
async fn credential_plugin_that_outlasts_an_attempt_serves_a_later_one() {
    let server = Server::new([found("41"), found("41")]);
    let directory = server.directory.path();
    let [plugin, runs, go] = ["plugin", "runs", "go"].map(|name| directory.join(name));
    let script = format!(
        "echo run >> {}\nwhile ! [ -e {} ]; do sleep 0.01; done\n\
         echo '{{\"status\": {{\"token\": \"plugged\"}}}}'\n",
        runs.display(),
        go.display()
    );
    fs::write(&plugin, script).unwrap();
    let plugin = plugin.display();
    let store = server.store_as(&format!("exec: {{command: sh, args: ['{plugin}']}}"));
    let first = tokio::time::timeout(Duration::from_millis(100), store.read()).await;
    assert!(first.is_err());
    fs::write(&go, "").unwrap();
    store.read().await.unwrap();
    store.read().await.unwrap();
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| sent_token(seen) == "plugged")
    );
    assert_eq!(fs::read_to_string(&runs).unwrap(), "run\n");
}
