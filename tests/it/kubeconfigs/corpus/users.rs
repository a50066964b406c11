//! Credentials, plugins and impersonation.

use super::Case;

pub(super) fn cases() -> Vec<Case> {
    [tokens(), certificates(), plugins(), impersonated()]
        .into_iter()
        .flatten()
        .collect()
}

fn tokens() -> Vec<Case> {
    let user = |name, fields: &str| Case::new(name).user(fields);
    vec![
        user("a token's file", "tokenFile: token"),
        user(
            "a token's file by its whole path",
            "tokenFile: '{HOME}/.kube/token'",
        ),
        user("a token's file that there is not", "tokenFile: absent"),
        user("a token's empty file", "tokenFile: empty").file(".kube/empty", "\n"),
        user("a token and its file", "token: abc\ntokenFile: token"),
        user(
            "a token and a file that there is not",
            "token: abc\ntokenFile: absent",
        ),
        user("a token and an empty path", "token: abc\ntokenFile: ''"),
        user("an empty token and its file", "token: ''\ntokenFile: token"),
        user("a null token and its file", "token:\ntokenFile: token"),
        user("an empty token", "token: ''").differs(ASKS),
        user("a token with spaces around", "token: ' abc '").differs(TRIMMED),
        user("a token with a line's end", "token: \"abc\\n\"").differs(TRIMMED),
        user("a token with a line's end in it", "token: \"a\\nc\""),
        user("a token with letters of no header", "token: 'ä'"),
        user("a user and a password", "username: me\npassword: pw"),
        user("a user and an empty password", "username: me\npassword: ''"),
        user("a user without a password", "username: me"),
        user("a password without a user", "password: pw").differs(ASKS),
        user(
            "an empty user and a token",
            "username: ''\npassword: ''\ntoken: abc",
        ),
        user(
            "a user and a password beside a token",
            "username: me\npassword: pw\ntoken: abc",
        ),
        user("a user beside a token", "username: me\ntoken: abc"),
        user("a password beside a token", "password: pw\ntoken: abc"),
        user(
            "a user and a password beside a token's file",
            "username: me\npassword: pw\ntokenFile: token",
        ),
        user("nothing", "{}").differs(ASKS),
        Case::new("a user that is null")
            .replace("  user:\n    token: abc\n", "  user:\n")
            .differs(ASKS),
        Case::new("a user that is a text").replace("  user:\n    token: abc\n", "  user: abc\n"),
    ]
}

fn certificates() -> Vec<Case> {
    let user = |name, fields: &str| Case::new(name).user(fields);
    vec![
        user("a certificate", "client-certificate-data: {CERT}\nclient-key-data: {KEY}"),
        user("a certificate's files", "client-certificate: c.pem\nclient-key: k.pem"),
        user("a certificate's file and a key's data", "client-certificate: c.pem\nclient-key-data: {KEY}"),
        user("a certificate's data and a key's file", "client-certificate-data: {CERT}\nclient-key: k.pem"),
        user("a certificate on several lines", "client-certificate-data: |\n        {CERT-LINES}\nclient-key-data: |\n        {KEY-LINES}"),
        user("a certificate and a key's line end", "client-certificate-data: {CERT}\nclient-key-data: \"{KEY}\\n\""),
        user("a certificate's data and its file", "client-certificate-data: {CERT}\nclient-certificate: c.pem\nclient-key-data: {KEY}"),
        user("a key's data and its file", "client-certificate-data: {CERT}\nclient-key-data: {KEY}\nclient-key: k.pem"),
        user("a certificate's data and empty paths", "client-certificate-data: {CERT}\nclient-certificate: ''\nclient-key-data: {KEY}\nclient-key: ''"),
        user("a certificate's files and empty data", "client-certificate-data: ''\nclient-certificate: c.pem\nclient-key-data: ''\nclient-key: k.pem"),
        user("a certificate without a key", "client-certificate-data: {CERT}"),
        user("a certificate and an empty key", "client-certificate-data: {CERT}\nclient-key-data: ''"),
        user("a key without a certificate", "client-key-data: {KEY}").differs(ASKS),
        user("a key without a certificate, and a token", "client-key-data: {KEY}\ntoken: abc"),
        user("an empty key beside a token", "client-key-data: ''\ntoken: abc"),
        user("an empty certificate beside a token", "client-certificate-data: ''\nclient-key-data: ''\ntoken: abc"),
        user("null certificates beside a token", "client-certificate-data:\nclient-key-data:\nclient-certificate:\nclient-key:\ntoken: abc"),
        user("a certificate beside a token", "client-certificate-data: {CERT}\nclient-key-data: {KEY}\ntoken: abc"),
        user("a certificate beside a user and a password", "client-certificate-data: {CERT}\nclient-key-data: {KEY}\nusername: me\npassword: pw"),
        user("a key of another certificate", "client-certificate-data: {CERT}\nclient-key-data: {KEY2}"),
        user("a certificate that is none", "client-certificate-data: anVuaw==\nclient-key-data: {KEY}"),
        user("a key that is none", "client-certificate-data: {CERT}\nclient-key-data: anVuaw=="),
        user("a certificate that is no base64", "client-certificate-data: '%%'\nclient-key-data: {KEY}"),
        user("a certificate's file that there is not", "client-certificate: absent\nclient-key: k.pem"),
        user("a key's file that there is not", "client-certificate: c.pem\nclient-key: absent"),
        user("one file for certificate and key", "client-certificate: both\nclient-key: both").file(".kube/both", "{CERT-PEM}{KEY-PEM}"),
        user("key first in one file", "client-certificate: both\nclient-key: both").file(".kube/both", "{KEY-PEM}{CERT-PEM}"),
        user("a certificate and its authority's", "client-certificate: chain\nclient-key: k.pem").file(".kube/chain", "{CERT-PEM}{CA-PEM}"),
        user("remarks around a certificate", "client-certificate: chain\nclient-key: k.pem").file(".kube/chain", "subject: me\n{CERT-PEM}\nthe end\n"),
        user("a certificate for a server without TLS", "client-certificate-data: {CERT}\nclient-key-data: {KEY}").replace("    server: {SERVER}\n    certificate-authority-data: {CA}\n", "    server: {PLAIN}\n"),
        user("a key of an elliptic curve with its parameters", "client-certificate: c.pem\nclient-key: parameters").file(".kube/parameters", "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{KEY-PEM}"),
    ]
}

/// Plugins that print credentials.
fn plugins() -> Vec<Case> {
    let plugin = |name, fields: &str| {
        let fields = format!(
            "exec:\n  apiVersion: client.authentication.k8s.io/v1\n  interactiveMode: Never\n{fields}"
        );
        Case::new(name)
            .user(&fields)
            .file(".kube/plugin", PLUGIN)
            .since(22)
    };
    let command = "  command: sh\n  args: ['{HOME}/.kube/plugin']";
    let with = |name, more: &str| plugin(name, &format!("{command}\n{more}"));
    vec![
        with("a plugin", ""),
        with(
            "a plugin and a variable",
            "  env:\n  - name: TOKEN\n    value: of-variable",
        ),
        with(
            "a plugin and an empty value",
            "  env:\n  - name: TOKEN\n    value: ''",
        ),
        with(
            "a plugin and a null value",
            "  env:\n  - name: TOKEN\n    value:",
        ),
        with(
            "a plugin and a variable without a value",
            "  env:\n  - name: TOKEN",
        ),
        with(
            "a plugin and a variable without a name",
            "  env:\n  - value: x",
        ),
        with("a plugin and null variables", "  env: null"),
        with("a plugin and a hint", "  installHint: get it"),
        with("a plugin and a null hint", "  installHint:"),
        with(
            "a plugin that gets the cluster",
            "  provideClusterInfo: true",
        ),
        with("a plugin beside a token", "token: abc"),
        with("a plugin beside a user", "username: me\npassword: pw"),
        with(
            "a plugin beside a certificate",
            "client-certificate-data: {CERT}\nclient-key-data: {KEY}",
        ),
        with("a plugin beside a token's file", "tokenFile: token"),
        with(
            "a plugin beside empty fields",
            "token: ''\nusername: ''\npassword: ''\nclient-certificate-data: ''",
        ),
        with(
            "a plugin beside an old provider",
            "auth-provider:\n  name: oidc\n  config: {id-token: def}",
        ),
        Case::new("a plugin without a version")
            .user("exec:\n  command: sh\n  args: ['{HOME}/.kube/plugin']")
            .file(".kube/plugin", PLUGIN)
            .differs("whatever version the plugin answers with is understood"),
        plugin("a plugin without a command", "  args: [a]"),
        plugin("a plugin with an empty command", "  command: ''"),
        plugin(
            "a plugin with null arguments",
            "  command: '{HOME}/.kube/absent'\n  args: null",
        ),
        plugin("a plugin that there is not", "  command: absent"),
        Case::new("a plugin that is null").user("exec: null\ntoken: abc"),
        Case::new("an old provider that is null").user("auth-provider: null\ntoken: abc"),
    ]
}

/// Acting as others.
fn impersonated() -> Vec<Case> {
    let user = |name, fields: &str| Case::new(name).user(&format!("token: abc\n{fields}"));
    vec![
        user("as another user", "as: me"),
        user("as another user in groups", "as: me\nas-groups: [a, b]"),
        user("as another user with a uid", "as: me\nas-uid: '7'").since(24),
        user(
            "as another user with more",
            "as: me\nas-user-extra: {scopes: [a, b], Other/Key: [c]}",
        ),
        user("in groups without a user", "as-groups: [a]"),
        user("with a uid without a user", "as-uid: '7'").since(24),
        user("with more without a user", "as-user-extra: {scopes: [a]}"),
        user(
            "empty groups without a user",
            "as-groups: []\nas-user-extra: {}\nas-uid: ''\nas: ''",
        ),
        user(
            "null groups without a user",
            "as-groups:\nas-user-extra:\nas-uid:\nas:",
        ),
        user("a null group", "as: me\nas-groups: [a, null]")
            .differs("kubectl sends an empty group, which no server takes"),
        Case::new("as another user by the command line").arguments(&["--as", "me"]),
        Case::new("in groups by the command line").arguments(&[
            "--as",
            "me",
            "--as-group",
            "a",
            "--as-group",
            "b",
        ]),
        Case::new("in groups by the command line without a user").arguments(&["--as-group", "a"]),
        Case::new("with a uid by the command line")
            .since(24)
            .arguments(&["--as", "me", "--as-uid", "7"]),
        user(
            "the command line's user beats the file's",
            "as: file\nas-groups: [file]\nas-uid: '7'",
        )
        .since(24)
        .arguments(&["--as", "me"]),
        user(
            "the command line's groups beside the file's",
            "as: file\nas-groups: [file]",
        )
        .arguments(&["--as", "me", "--as-group", "a"]),
        user("the command line's groups and the file's user", "as: file")
            .arguments(&["--as-group", "a"]),
    ]
}

const PLUGIN: &str = "echo '{\"apiVersion\": \"client.authentication.k8s.io/v1\", \"kind\": \"ExecCredential\", \
                      \"status\": {\"token\": \"'${TOKEN-of-plugin}'\"}}'\n";
const ASKS: &str = "kubectl asks on the terminal for a name and a password; lease-exec asks nobody, and \
                    sends no credentials, which are the server's to miss";
const TRIMMED: &str = "white space is no part of a token, and a header can't have a line's end";
