//! Wherever the tests are started, what they start gets the same; and however they end, nothing stays.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write, stdin, stdout},
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    processes::{Grown, Level, TestCgroup},
    surroundings::as_the_caller,
    wait::{LIMIT, wait_until},
    world::{World, is_alive},
};

/// The test runs itself once more in another process, which has been given all sorts of things.
#[test]
fn whatever_the_tests_are_started_with_a_process_under_test_gets_the_same() {
    const IS_STARTED: &str = "TEST_IS_STARTED";
    if env::var_os(IS_STARTED).is_some() {
        let finished = World::on_files().program("sh").args(["-c", SHOW]).run();
        let shown = finished.assert_code(0).stdout();
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
    for line in ["SigBlk:\t0000000000000000", "Umask:\t0022"] {
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

    // What another run has left is cleared away at the start of this one, which that does not disturb.
    let cgroup = TestCgroup::version_2();
    let mut dead = Command::new("true").spawn().expect("true can be run");
    dead.wait().expect("it is our child");
    let remains = cgroup.path().with_file_name(format!("lxt{}", dead.id()));
    fs::create_dir(&remains).expect("a cgroup can be made");
    assert_eq!(seen("exec \"$@\""), here);
    wait_until("the cgroup is removed", LIMIT, || {
        (!remains.exists()).then_some(())
    });
}

/// The test runs itself once more in another process, which is killed.
#[test]
fn nothing_stays_of_a_run_of_the_tests_that_is_killed() {
    const IS_VICTIM: &str = "TEST_IS_KILLED";
    if env::var_os(IS_VICTIM).is_some() {
        be_killed();
    }
    let (_crate, module) = module_path!().split_once("::").expect("this is a module");
    let name = "nothing_stays_of_a_run_of_the_tests_that_is_killed";
    let own = env::current_exe().expect("this program has a path");
    let mut victim = as_the_caller(&mut Command::new(own))
        .args([&format!("{module}::{name}"), "--exact", "--nocapture"])
        .env(IS_VICTIM, "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program can be started");
    let output = BufReader::new(victim.stdout.take().expect("it is a pipe"));
    let mut lines = output.lines().map_while(Result::ok);
    let seen = lines.find_map(|line| line.split_once(SEEN).map(|(_, rest)| rest.to_owned()));
    let seen = seen.expect("the victim says what it has made");
    let mut words = seen.split(' ');
    let [directory, version_2, freezer] = [(); 3].map(|()| words.next().expect("a path"));
    let processes = words
        .map(|word| word.parse().expect("a pid"))
        .collect::<Vec<i32>>();
    let made = [directory, version_2, freezer].map(Path::new);
    assert!(made.iter().all(|path| path.exists()), "{seen}");
    assert!(processes.iter().all(|pid| is_alive(*pid)), "{seen}");
    assert_eq!(processes.len(), 7, "{seen}");

    victim.kill().expect("it is our child");
    victim.wait().expect("it is our child");
    wait_until("nothing is left", LIMIT, || {
        let is_left = made.iter().any(|path| path.exists());
        (!is_left && !processes.iter().any(|pid| is_alive(*pid))).then_some(())
    });
}

/// Makes what a run can leave behind: a tree in a cgroup, and one of it in a freezer.
fn be_killed() -> ! {
    let world = World::on_files();
    let grown = Grown::start(&world, Level::Cgroup, "60s");
    let freezer = TestCgroup::with("freezer");
    let cgroup = TestCgroup::version_2();
    let tree = grown.mark.alive();
    freezer.set("cgroup.procs", &tree[0].to_string());
    freezer.set("freezer.state", "FROZEN");
    let paths = [world.path(), cgroup.path(), freezer.path()].map(|path| path.display());
    let [directory, version_2, frozen] = paths;
    let processes = [tree, vec![grown.guard]].concat();
    let processes = processes.iter().map(i32::to_string).collect::<Vec<_>>();
    let text = format!(
        "{SEEN}{directory} {version_2} {frozen} {}\n",
        processes.join(" ")
    );
    let written = stdout()
        .write_all(text.as_bytes())
        .and_then(|()| stdout().flush());
    written.expect("the test that has started this one reads");
    // Nothing will ever be read.
    let _ = stdin().read_line(&mut String::new());
    unreachable!("the test kills this process, or its end does");
}

const SEEN: &str = "seen: ";

const SHOW: &str = "grep -E '^(Sig(Blk|Ign)|Umask):' /proc/self/status; \
                    ulimit -n; ulimit -a; ls /proc/self/fd; env | grep -v ^TMPDIR=";

const HOSTILE: &str = "
    umask 077; ulimit -Sn 256; ulimit -c unlimited; exec 7</dev/null
    export HOME=/nowhere KUBECONFIG=/nowhere TZ=Asia/Kolkata LANG=tr_TR.UTF-8 LC_ALL=tr_TR.UTF-8
    export HTTPS_PROXY=http://127.0.0.1:1 http_proxy=http://127.0.0.1:1 LEASE_EXEC_QUIET=true
    export LEASE_EXEC_LEASE=other POD_NAMESPACE=other KUBERNETES_SERVICE_HOST=127.0.0.1
    exec env --ignore-signal --block-signal \"$@\"";
