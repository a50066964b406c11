//! Pods: a service account's mount, and what stands beside it.

use super::{Case, USUAL};

pub(super) fn cases() -> Vec<Case> {
    let two = USUAL.replace("{SERVER}", "{TWO}");
    vec![
        Case::pod("a pod"),
        Case::pod("a pod and a kubeconfig").file(".kube/config", &two),
        Case::pod("a pod and a kubeconfig without a namespace")
            .file(".kube/config", &two.replace("    namespace: ns\n", "")),
        Case::pod("a pod and a namespace on the command line").arguments(&["-n", "flag"]),
        Case::pod("a pod and POD_NAMESPACE").env("POD_NAMESPACE", "pod"),
        Case::pod("a pod and an empty POD_NAMESPACE").env("POD_NAMESPACE", ""),
        Case::pod("a pod without a namespace").without("pod/namespace"),
        Case::pod("a pod without a namespace, and one on the command line")
            .without("pod/namespace")
            .arguments(&["-n", "flag"]),
        Case::pod("a pod with an empty namespace").file("pod/namespace", ""),
        Case::pod("a pod with a line after the namespace").file("pod/namespace", "ns-of-pod\n"),
        Case::pod("a pod with a line after the token").file("pod/token", "of-pod\n"),
        Case::pod("a pod without a token").without("pod/token"),
        Case::pod("a pod with an empty token").file("pod/token", ""),
        Case::pod("a pod without an authority").without("pod/ca.crt"),
        Case::pod("a pod with an empty authority").file("pod/ca.crt", ""),
        Case::pod("a pod with another authority").file("pod/ca.crt", "{OTHER-CA-PEM}"),
        Case::pod("a pod with an unreadable certificate beside the right one")
            .file(
                "pod/ca.crt",
                "-----BEGIN CERTIFICATE-----\nanVuaw==\n-----END CERTIFICATE-----\n{CA-PEM}",
            )
            .differs("kubectl is strict in a pod alone, and then trusts what the system trusts"),
        Case::pod("a pod without its host").without_env("KUBERNETES_SERVICE_HOST"),
        Case::pod("a pod with an empty host").env("KUBERNETES_SERVICE_HOST", ""),
        Case::pod("a pod without its port").without_env("KUBERNETES_SERVICE_PORT"),
        Case::pod("a pod with an empty port").env("KUBERNETES_SERVICE_PORT", ""),
        Case::pod("a pod with a port that is none").env("KUBERNETES_SERVICE_PORT", "x"),
        Case::pod("a pod with a name for a host").env("KUBERNETES_SERVICE_HOST", "localhost"),
        Case::pod("a pod and KUBECONFIG is set and empty").env("KUBECONFIG", ""),
        Case::pod("a pod and KUBECONFIG names nothing").env("KUBECONFIG", "/dev/null"),
        Case::pod("a pod and KUBECONFIG names no file that there is")
            .env("KUBECONFIG", "{HOME}/absent")
            .differs(NO_FALL_BACK),
        Case::pod("a pod and an empty kubeconfig").file(".kube/config", ""),
        Case::pod("a pod and a broken kubeconfig").file(".kube/config", "clusters: ["),
        Case::pod("a pod and a kubeconfig without a current context")
            .file(".kube/config", &two.replace("current-context: here\n", ""))
            .differs(NO_FALL_BACK),
        Case::pod("a pod and a kubeconfig of a current context alone")
            .file(".kube/config", "current-context: here\n"),
        Case::pod("a pod and a context on the command line").arguments(&["--context", "here"]),
        Case::pod("a pod and a user to act as")
            .arguments(&["--as", "me"])
            .differs("kubectl then forgets that it is in a pod and asks http://localhost:8080"),
        Case::pod("a pod and a proxy")
            .env("HTTPS_PROXY", "http://localhost:{PORT}")
            .env("KUBERNETES_SERVICE_HOST", "10.255.255.1"),
    ]
}

const NO_FALL_BACK: &str =
    "who names a kubeconfig must not get the rights of the pod because of a typo";
