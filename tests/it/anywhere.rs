//! Wherever the tests are started, what they start gets the same.

use std::{
    env,
    io::{Write, stdout},
    process::Command,
};

use crate::{surroundings::as_the_caller, world::World};

/// The test runs itself once more in another process, which has been given all sorts of things.
#[test]
fn whatever_the_tests_are_started_with_a_process_under_test_gets_the_same() {
    const IS_STARTED: &str = "TEST_IS_STARTED";
    if env::var_os(IS_STARTED).is_some() {
        let finished = World::on_files().program("sh").args(["-c", SHOW]).run();
        let shown = finished.stdout();
        let written = shown
            .lines()
            .try_for_each(|line| writeln!(stdout(), "{SEEN}{line}"));
        return written.expect("the test that has started this one reads");
    }
    let (_crate, module) = module_path!().split_once("::").expect("this is a module");
    let name = "whatever_the_tests_are_started_with_a_process_under_test_gets_the_same";
    let seen = |script: &str| {
        let own = env::current_exe().expect("this program has a path");
        let output = as_the_caller(&mut Command::new("sh"))
            .args(["-c", script, "sh"])
            .arg(own)
            .args([&format!("{module}::{name}"), "--exact", "--nocapture"])
            .env(IS_STARTED, "")
            .output()
            .expect("sh runs");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter_map(|line| line.split_once(SEEN));
        lines.map(|(_, line)| line.to_owned()).collect::<Vec<_>>()
    };
    let here = seen("exec \"$@\"");
    for line in ["SigBlk:\t0000000000000000", "Umask:\t0022", "4096"] {
        assert!(
            here.iter().any(|other| other == line),
            "{line:?} is not in {here:#?}"
        );
    }
    // In what posix_spawn(3) starts, glibc has the two signals ignored that it keeps for itself.
    let ignored = here.iter().find_map(|line| line.strip_prefix("SigIgn:\t"));
    assert!(["0000000000000000", "0000000180000000"].contains(&ignored.unwrap_or_default()));
    let elsewhere = seen(HOSTILE);
    assert_eq!(elsewhere, here);
}

const SEEN: &str = "seen: ";

const SHOW: &str = "grep -E '^(Sig(Blk|Ign)|Umask):' /proc/self/status; \
                    ulimit -n; ulimit -a; ls /proc/self/fd; env";

const HOSTILE: &str = "
    umask 077; ulimit -Sn 256; ulimit -c unlimited; exec 7</dev/null
    export HOME=/nowhere KUBECONFIG=/nowhere TZ=Asia/Kolkata LANG=tr_TR.UTF-8 LC_ALL=tr_TR.UTF-8
    export HTTPS_PROXY=http://127.0.0.1:1 http_proxy=http://127.0.0.1:1 LEASE_EXEC_QUIET=true
    export LEASE_EXEC_LEASE=other POD_NAMESPACE=other KUBERNETES_SERVICE_HOST=127.0.0.1
    exec env --ignore-signal --block-signal \"$@\"";
