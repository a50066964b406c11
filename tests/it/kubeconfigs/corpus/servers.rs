//! Servers and certificate authorities.

use super::Case;

pub(super) fn cases() -> Vec<Case> {
    [addresses(), authorities(), pinned(), proxies()]
        .into_iter()
        .flatten()
        .collect()
}

/// The server's own certificate in the place of an authority's.
fn pinned() -> Vec<Case> {
    let own = |name, shown: &str, bundle: &str| {
        let fields = "server: https://127.0.0.1:{PORT}\ntls-server-name: ";
        let fields = format!("{fields}{shown}\ncertificate-authority-data: {{{bundle}}}");
        Case::new(name).cluster(&fields)
    };
    vec![
        own("a server that is its own authority", "own.test", "own.test"),
        own("a server without its authority", "leaf.test", "leaf.test"),
        own("another server's certificate", "own.test", "leaf.test"),
        own(
            "a pinned certificate of clients",
            "leaf-clients.test",
            "leaf-clients.test",
        ),
        own(
            "a pinned authority's of clients",
            "own-clients.test",
            "own-clients.test",
        ),
        own(
            "a pinned certificate that has ended",
            "leaf-past.test",
            "leaf-past.test",
        ),
        own(
            "a pinned authority's that has ended",
            "own-past.test",
            "own-past.test",
        ),
        own(
            "a pinned certificate on P-521",
            "strong.test",
            "strong.test",
        ),
        own(
            "a pinned certificate with another name",
            "127.0.0.2",
            "own.test",
        ),
        Case::new("the system pins a server")
            .cluster("server: https://127.0.0.1:{PORT}\ntls-server-name: leaf.test")
            .file(".kube/leaf.pem", "{leaf.test-PEM}")
            .env("SSL_CERT_FILE", "{HOME}/.kube/leaf.pem")
            .env("SSL_CERT_DIR", "/nonexistent")
            .differs("what the system trusts are authorities, and a server is none"),
    ]
}

/// The first server is the proxy and what is behind it.
fn proxies() -> Vec<Case> {
    let by = |name, url: &str| {
        let fields = "server: {TWO}\ncertificate-authority-data: {CA}\nproxy-url: ";
        Case::new(name).cluster(&format!("{fields}'{url}'"))
    };
    let elsewhere = |name, variable, url: &str| {
        let fields = "server: https://10.255.255.1:6443\ncertificate-authority-data: {CA}\n\
                      tls-server-name: localhost";
        Case::new(name).cluster(fields).env(variable, url)
    };
    vec![
        by("a proxy", "http://localhost:{PORT}"),
        by("a proxy and a path", "http://localhost:{PORT}/a"),
        by("a proxy and a user", "http://me:p%40ss@localhost:{PORT}"),
        by("a proxy and a user alone", "http://me@localhost:{PORT}"),
        by(
            "a proxy and a password alone",
            "http://:pw@localhost:{PORT}",
        ),
        by("a proxy in capitals", "HTTP://localhost:{PORT}"),
        by("a proxy without a scheme", "localhost:{PORT}").differs(LIKE_THE_VARIABLE),
        by("a proxy of an unknown kind", "ftp://localhost:{PORT}"),
        by("a proxy of SOCKS 4", "socks4://localhost:{PORT}"),
        by("a proxy that is no URL", "http://["),
        by("an empty proxy", "").replace("{TWO}", "{SERVER}"),
        by("a proxy by TLS", "https://localhost:{PORT}"),
        by(
            "a proxy by TLS and a user",
            "https://me:pw@localhost:{PORT}",
        ),
        by(
            "a proxy by TLS with a name that it has not",
            "https://127.0.0.2:{PORT}",
        ),
        by(
            "a proxy by TLS and a client certificate",
            "https://localhost:{PORT}",
        )
        .user("client-certificate-data: {CERT}\nclient-key-data: {KEY}"),
        by(
            "a proxy by TLS and a name for TLS",
            "https://127.0.0.2:{PORT}\ntls-server-name: 'localhost",
        ),
        by(
            "a proxy by TLS without an authority",
            "https://localhost:{PORT}",
        )
        .replace(
            "certificate-authority-data: {CA}",
            "insecure-skip-tls-verify: true",
        ),
        by("SOCKS", "socks5://localhost:{PORT}"),
        by("SOCKS and a name", "socks5://localhost:{PORT}").replace("{TWO}", "https://localhost:1"),
        by("SOCKS and a user", "socks5://me:p%40ss@localhost:{PORT}"),
        by("SOCKS and a user alone", "socks5://me@localhost:{PORT}").since(23),
        by("SOCKS by name", "socks5h://localhost:{PORT}").differs(LIKE_THE_VARIABLE),
        elsewhere("HTTPS_PROXY", "HTTPS_PROXY", "http://localhost:{PORT}"),
        elsewhere(
            "HTTPS_PROXY without a scheme",
            "HTTPS_PROXY",
            "localhost:{PORT}",
        ),
        elsewhere(
            "https_proxy and a user",
            "https_proxy",
            "http://me@localhost:{PORT}",
        ),
        elsewhere(
            "HTTPS_PROXY by TLS",
            "HTTPS_PROXY",
            "https://localhost:{PORT}",
        ),
        elsewhere(
            "HTTPS_PROXY of SOCKS",
            "HTTPS_PROXY",
            "socks5://me:pw@localhost:{PORT}",
        ),
        elsewhere(
            "HTTPS_PROXY of SOCKS by name",
            "HTTPS_PROXY",
            "socks5h://localhost:{PORT}",
        )
        .since(33),
    ]
}

fn addresses() -> Vec<Case> {
    vec![
        Case::new("a path")
            .cluster("server: {SERVER}/k8s/clusters/a\ncertificate-authority-data: {CA}"),
        Case::new("a path and a slash")
            .cluster("server: {SERVER}/k8s/\ncertificate-authority-data: {CA}"),
        Case::new("a slash").cluster("server: {SERVER}/\ncertificate-authority-data: {CA}"),
        Case::new("a query").cluster("server: {SERVER}/a?b=c\ncertificate-authority-data: {CA}"),
        Case::new("a fragment")
            .cluster("server: {SERVER}/a#b\ncertificate-authority-data: {CA}")
            .differs("kubectl makes it a part of the path, which no server has"),
        Case::new("a name")
            .cluster("server: https://localhost:{PORT}\ncertificate-authority-data: {CA}"),
        Case::new("a scheme in capitals")
            .cluster("server: HTTPS://localhost:{PORT}\ncertificate-authority-data: {CA}"),
        Case::new("no scheme, with an authority")
            .cluster("server: 127.0.0.1:{PORT}\ncertificate-authority-data: {CA}")
            .differs(THIS_MACHINE),
        Case::new("no scheme, a name")
            .cluster("server: localhost:{PORT}\ncertificate-authority-data: {CA}")
            .differs(THIS_MACHINE),
        Case::new("no scheme, without an authority")
            .cluster("server: 127.0.0.1:{PORT}")
            .differs(THIS_MACHINE),
        Case::new("no scheme and insecure")
            .cluster("server: 127.0.0.1:{PORT}\ninsecure-skip-tls-verify: true")
            .differs(THIS_MACHINE),
        Case::new("no scheme and a path")
            .cluster("server: 127.0.0.1:{PORT}/a\ncertificate-authority-data: {CA}"),
        Case::new("no TLS, and a token")
            .cluster("server: {PLAIN}")
            .differs(THIS_MACHINE),
        Case::new("no TLS, and a user with a password")
            .cluster("server: {PLAIN}")
            .user("username: me\npassword: pw")
            .differs(THIS_MACHINE),
        Case::new("no TLS, and an impersonated user")
            .cluster("server: {PLAIN}")
            .user("token: abc\nas: me")
            .differs(THIS_MACHINE),
        Case::new("no TLS, and an authority")
            .cluster("server: {PLAIN}\ncertificate-authority-data: {CA}")
            .differs(THIS_MACHINE),
        Case::new("no server").cluster("certificate-authority-data: {CA}"),
        Case::new("an empty server").cluster("server: ''\ncertificate-authority-data: {CA}"),
        Case::new("a null server").cluster("server:\ncertificate-authority-data: {CA}"),
        Case::new("another scheme").cluster("server: ftp://127.0.0.1:{PORT}"),
        Case::new("no URL").cluster("server: 'https://['"),
        Case::new("a port that is none").cluster("server: https://127.0.0.1:99999"),
        Case::new("spaces around")
            .cluster("server: ' {SERVER} '\ncertificate-authority-data: {CA}"),
        Case::new("a user in the URL")
            .cluster("server: https://me:pw@127.0.0.1:{PORT}\ncertificate-authority-data: {CA}")
            .user("{}")
            .differs(ASKS),
        Case::new("a user in the URL and a token")
            .cluster("server: https://me:pw@127.0.0.1:{PORT}\ncertificate-authority-data: {CA}"),
        Case::new("a name for TLS").cluster(
            "server: {SERVER}\ncertificate-authority-data: {CA}\ntls-server-name: localhost",
        ),
        Case::new("another name for TLS").cluster_too("tls-server-name: other.example"),
        Case::new("an empty name for TLS").cluster_too("tls-server-name: ''"),
        Case::new("a null name for TLS").cluster_too("tls-server-name:"),
        Case::new("compression is disabled").cluster_too("disable-compression: true"),
        Case::new("a cluster that is null").replace(
            "  cluster:\n    server: {SERVER}\n    certificate-authority-data: {CA}\n",
            "  cluster:\n",
        ),
    ]
}

fn authorities() -> Vec<Case> {
    let junk = "-----BEGIN CERTIFICATE-----\nanVuaw==\n-----END CERTIFICATE-----\n";
    vec![
        Case::new("an authority's file").cluster("server: {SERVER}\ncertificate-authority: ca.pem"),
        Case::new("an authority's file by its whole path")
            .cluster("server: {SERVER}\ncertificate-authority: '{HOME}/.kube/ca.pem'"),
        Case::new("an authority's file that there is not")
            .cluster("server: {SERVER}\ncertificate-authority: absent"),
        Case::new("an authority's empty file")
            .file(".kube/empty", "")
            .cluster("server: {SERVER}\ncertificate-authority: empty"),
        Case::new("an authority's file and its data").cluster(
            "server: {SERVER}\ncertificate-authority-data: {CA}\ncertificate-authority: absent",
        ),
        Case::new("an authority's file that is there and its data")
            .cluster_too("certificate-authority: ca.pem"),
        Case::new("an authority's empty path and its data")
            .cluster_too("certificate-authority: ''"),
        Case::new("an authority's path and empty data").cluster(
            "server: {SERVER}\ncertificate-authority: ca.pem\ncertificate-authority-data: ''",
        ),
        Case::new("an authority's path and null data").cluster(
            "server: {SERVER}\ncertificate-authority: ca.pem\ncertificate-authority-data:",
        ),
        Case::new("no authority").cluster("server: {SERVER}"),
        Case::new("no authority, and the system's knows")
            .cluster("server: {SERVER}")
            .env("SSL_CERT_FILE", "{HOME}/.kube/ca.pem")
            .env("SSL_CERT_DIR", "/nonexistent"),
        Case::new("another authority, and the system's knows")
            .cluster("server: {SERVER}\ncertificate-authority-data: {OTHER-CA}")
            .env("SSL_CERT_FILE", "{HOME}/.kube/ca.pem"),
        Case::new("another authority")
            .cluster("server: {SERVER}\ncertificate-authority-data: {OTHER-CA}"),
        Case::new("insecure").cluster("server: {SERVER}\ninsecure-skip-tls-verify: true"),
        Case::new("insecure and an authority").cluster_too("insecure-skip-tls-verify: true"),
        Case::new("insecure and an authority's file").cluster(
            "server: {SERVER}\ncertificate-authority: ca.pem\ninsecure-skip-tls-verify: true",
        ),
        Case::new("insecure and an empty authority").cluster(
            "server: {SERVER}\ninsecure-skip-tls-verify: true\ncertificate-authority-data: ''",
        ),
        Case::new("insecure is false").cluster_too("insecure-skip-tls-verify: false"),
        Case::new("insecure is null").cluster_too("insecure-skip-tls-verify:"),
        Case::new("base64 on several lines, plain")
            .cluster("server: {SERVER}\ncertificate-authority-data:\n    {CA-LINES}")
            .differs(FOLDED),
        Case::new("base64 on several lines, in quotes")
            .cluster("server: {SERVER}\ncertificate-authority-data: \"{CA-LINES}\"")
            .differs(FOLDED),
        Case::new("base64 on several lines, literal")
            .cluster("server: {SERVER}\ncertificate-authority-data: |\n        {CA-LINES}"),
        Case::new("base64 on several lines, literal and stripped")
            .cluster("server: {SERVER}\ncertificate-authority-data: |-\n        {CA-LINES}"),
        Case::new("base64 on several lines, folded")
            .cluster("server: {SERVER}\ncertificate-authority-data: >\n        {CA-LINES}")
            .differs(FOLDED),
        Case::new("base64 and a line's end")
            .cluster("server: {SERVER}\ncertificate-authority-data: \"{CA}\\n\""),
        Case::new("base64 and lines of Windows")
            .cluster("server: {SERVER}\ncertificate-authority-data: \"{CA}\\r\\n\""),
        Case::new("base64 and a space")
            .cluster("server: {SERVER}\ncertificate-authority-data: '{CA} '")
            .differs(FOLDED),
        Case::new("base64 as YAML's binary")
            .cluster("server: {SERVER}\ncertificate-authority-data: !!binary {CA}"),
        Case::new("no base64").cluster("server: {SERVER}\ncertificate-authority-data: '%%'"),
        Case::new("base64 without its padding")
            .cluster("server: {SERVER}\ncertificate-authority-data: anVuaw"),
        Case::new("PEM in place of base64").cluster(
            "server: {SERVER}\ncertificate-authority-data: |\n  -----BEGIN CERTIFICATE-----",
        ),
        Case::new("base64 of no certificate")
            .cluster("server: {SERVER}\ncertificate-authority-data: anVuaw=="),
        Case::new("a bundle")
            .file(".kube/bundle", "{OTHER-CA-PEM}{CA-PEM}")
            .cluster("server: {SERVER}\ncertificate-authority: bundle"),
        Case::new("a bundle with remarks")
            .file(
                ".kube/bundle",
                "# one\n{OTHER-CA-PEM}\n# two\n\n{CA-PEM}\nthe end",
            )
            .cluster("server: {SERVER}\ncertificate-authority: bundle"),
        Case::new("a bundle with an unreadable certificate first")
            .file(".kube/bundle", &format!("{junk}{{CA-PEM}}"))
            .cluster("server: {SERVER}\ncertificate-authority: bundle"),
        Case::new("a bundle with an unreadable certificate last")
            .file(".kube/bundle", &format!("{{CA-PEM}}{junk}"))
            .cluster("server: {SERVER}\ncertificate-authority: bundle"),
        Case::new("a bundle with broken base64")
            .file(
                ".kube/bundle",
                &format!("{}{{CA-PEM}}", junk.replace("anVuaw==", "%%")),
            )
            .cluster("server: {SERVER}\ncertificate-authority: bundle"),
        Case::new("a bundle with a cut certificate")
            .file(".kube/bundle", "{CA-PEM}-----BEGIN CERTIFICATE-----\nanVu")
            .cluster("server: {SERVER}\ncertificate-authority: bundle"),
        Case::new("a bundle of unreadable certificates")
            .file(".kube/bundle", &[junk, junk].concat())
            .cluster("server: {SERVER}\ncertificate-authority: bundle"),
        Case::new("a bundle with a key")
            .file(".kube/bundle", "{KEY-PEM}{CA-PEM}")
            .cluster("server: {SERVER}\ncertificate-authority: bundle"),
        Case::new("a bundle with headers")
            .file(".kube/bundle", "{OTHER-CA-PEM}{CA-PEM}")
            .cluster("server: {SERVER}\ncertificate-authority: bundle"),
    ]
}

const FOLDED: &str = "YAML makes spaces of these line ends; kubectl refuses them, and what is meant \
                      is beyond doubt";
const ASKS: &str = "kubectl asks on the terminal for a name and a password, though they are here";
const THIS_MACHINE: &str = "kubectl sends no credentials without TLS; lease-exec does so to this machine alone, \
                            where another program may speak TLS in its place";

/// The variables may have it so.
const LIKE_THE_VARIABLE: &str = "kubectl refuses what it takes from HTTPS_PROXY";
