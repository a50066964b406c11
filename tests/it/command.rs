//! What the command gets, and how its end becomes ours.

use std::{
    fs,
    io::Write,
    os::unix::ffi::OsStringExt,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;

use crate::world::{LEASE, World};

#[test]
fn exit_codes_pass_unchanged() {
    let world = World::on_files();
    for code in [
        0, 1, 2, 42, 64, 75, 79, 80, 124, 125, 126, 127, 128, 254, 255,
    ] {
        world
            .lease_exec()
            .script(&format!("exit {code}"))
            .run()
            .assert_code(code);
    }
    assert_eq!(world.holder(), "");
}

#[test]
fn a_command_that_died_of_a_signal_makes_us_die_of_it() {
    let world = World::on_files();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGKILL,
        Signal::SIGUSR1,
    ] {
        let script = format!("kill -{} $$", signal as i32);
        world
            .lease_exec()
            .script(&script)
            .run()
            .assert_signal(signal);
    }
    assert_eq!(
        world.holder(),
        "",
        "a command's own death releases the lease"
    );
}

#[test]
fn arguments_arrive_byte_for_byte() {
    let world = World::on_files();
    let argv = [
        b"plain".to_vec(),
        b"two words".to_vec(),
        b"".to_vec(),
        b"'single' \"double\" `back` $HOME \\".to_vec(),
        b"line\nbreak\ttab".to_vec(),
        b"--lease".to_vec(),
        b"-".to_vec(),
        b"--".to_vec(),
        b"\xff\xfe not UTF-8 \x80".to_vec(),
    ];
    let printf = ["printf", "%s\\0"].map(|word| word.as_bytes().to_vec());
    let words = printf
        .into_iter()
        .chain(argv.clone())
        .map(std::ffi::OsString::from_vec);
    let finished = world.lease_exec().command(words).run();
    finished.assert_code(0);
    let mut expected = argv.join(&0);
    expected.push(0);
    assert_eq!(finished.stdout, expected);
}

#[test]
fn stdin_reaches_the_command_byte_for_byte_and_stdout_is_its_own() {
    let world = World::on_files();
    let bytes = (0..3_000_000_u32)
        .map(|number| (number % 251) as u8)
        .collect::<Vec<_>>();
    let mut feeder = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cat");
    let mut feed = feeder.stdin.take().expect("piped");
    let stdin = feeder.stdout.take().expect("piped");
    let copy = bytes.clone();
    let feeding = std::thread::spawn(move || feed.write_all(&copy));
    let finished = world.lease_exec().command(["cat"]).stdin(stdin).run();
    finished.assert_code(0);
    feeding.join().expect("no panic").expect("all was read");
    feeder.wait().expect("cat ends");
    assert!(
        finished.stdout == bytes,
        "{} bytes of {}",
        finished.stdout.len(),
        bytes.len()
    );
}

#[test]
fn the_environment_says_which_term_it_is_and_changes_nothing_else() {
    let world = World::on_files();
    let plain = Command::new("env").output().expect("env runs").stdout;
    let plain = String::from_utf8_lossy(&plain).into_owned();
    let finished = world.lease_exec().command(["env"]).run();
    let with = finished.stdout();
    let added = with
        .lines()
        .filter(|line| !plain.lines().any(|other| other == *line))
        .collect::<Vec<_>>();
    let value = |name: &str| {
        let line = added
            .iter()
            .find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("{name} is missing: {added:?}"))
            .to_owned()
    };
    assert_eq!(value("LEASE_NAME"), LEASE);
    assert_eq!(value("LEASE_NAMESPACE"), "default");
    assert_eq!(value("LEASE_TRANSITIONS"), "0");
    let token: u64 = value("LEASE_FENCING_TOKEN").parse().expect("a number");
    let lease = world.lease().expect("stored");
    assert_eq!(value("LEASE_UID"), lease["metadata"]["uid"]);
    let identity = value("LEASE_HOLDER_IDENTITY");
    assert!(identity.contains('_'), "{identity}");
    assert_eq!(added.len(), 6, "{added:?}");
    assert_eq!(
        plain
            .lines()
            .filter(|line| !with.lines().any(|other| other == *line))
            .count(),
        0
    );

    let again = world
        .lease_exec()
        .script("echo $LEASE_FENCING_TOKEN $LEASE_TRANSITIONS")
        .run()
        .stdout();
    let words = again.split_whitespace().collect::<Vec<_>>();
    assert!(words[0].parse::<u64>().expect("a number") > token);
    assert_eq!(words[1], "1");
}

#[test]
fn pod_name_and_pod_namespace_are_used_and_flags_win() {
    let world = World::on_files();
    let show = "echo $LEASE_NAMESPACE $LEASE_HOLDER_IDENTITY";
    let run = |args: &[&str]| {
        let invocation = world
            .lease_exec()
            .env("POD_NAME", "pod-7")
            .env("POD_NAMESPACE", "ops");
        invocation.args(args).script(show).run().stdout()
    };
    assert!(run(&[]).starts_with("ops pod-7_"), "{}", run(&[]));
    let flags = run(&["-n", "dev", "-i", "me"]);
    assert!(flags.starts_with("dev me_"), "{flags}");
}

#[test]
fn what_cannot_be_executed_is_126_or_127_and_the_lease_is_not_touched() {
    let world = World::on_files();
    let path = |name: &str| world.path().join(name);
    fs::write(path("plain"), "true").expect("written");
    fs::create_dir(path("directory")).expect("made");
    for (command, code) in [
        (path("missing"), 127),
        ("no-such-command-anywhere".into(), 127),
        (path("plain"), 126),
        (path("directory"), 126),
    ] {
        let finished = world.lease_exec().command([&command]).run();
        finished
            .assert_code(code)
            .assert_says(&command.display().to_string());
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        assert!(
            world.lease().is_none(),
            "the lease was touched for {command:?}"
        );
    }
}

#[test]
fn a_command_that_only_the_kernel_refuses_leaves_the_lease_free() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::on_files();
    for (content, code) in [
        ("#!/no/such/interpreter\n", 127),
        ("\u{7f}ELF\u{2}\u{1}\u{1}\0, but no more", 126),
    ] {
        let file = world.path().join("odd");
        fs::write(&file, content).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
        world.lease_exec().command([&file]).run().assert_code(code);
        assert_eq!(world.holder(), "");
    }
}

#[test]
fn signals_are_forwarded_to_the_command() {
    let world = World::on_files();
    let script = "for s in TERM INT HUP QUIT USR1 USR2 WINCH ALRM; do trap \"echo $s\" $s; done; \
                  trap 'exit 5' CONT; echo ready; while :; do sleep 0.02; done";
    let running = world.lease_exec().script(script).start();
    let stdout = world.path().join("stdout-0");
    let printed = |what: &str| {
        crate::wait::wait_until(
            format!("the command prints {what}"),
            crate::wait::LIMIT,
            || {
                let text = fs::read_to_string(&stdout).unwrap_or_default();
                text.lines().any(|line| line == what).then_some(())
            },
        );
    };
    printed("ready");
    for (signal, name) in [
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
        (Signal::SIGWINCH, "WINCH"),
        (Signal::SIGALRM, "ALRM"),
    ] {
        running.signal(signal);
        printed(name);
    }
    running.signal(Signal::SIGCONT);
    running.wait().assert_code(5);
}

#[test]
fn help_and_version_go_to_stdout() {
    let world = World::on_files();
    let help = world.lease_exec().args(["--help"]).run();
    assert!(help.assert_code(0).stdout().contains("LEASE_FENCING_TOKEN"));
    assert_eq!(help.stderr, "");
    let version = world.lease_exec().args(["--version"]).run();
    assert_eq!(
        version.assert_code(0).stdout(),
        concat!("lease-exec ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn messages_can_be_json() {
    let world = World::on_files();
    let finished = world
        .lease_exec()
        .args(["--log-format", "json"])
        .command(["true"])
        .run();
    let lines = finished.stderr.lines().map(|line| {
        serde_json::from_str::<serde_json::Value>(line)
            .unwrap_or_else(|err| panic!("{line}: {err}"))
    });
    let acquired = lines
        .filter(|line| line["message"] == "acquired the lease")
        .collect::<Vec<_>>();
    assert_eq!(acquired.len(), 1, "{}", finished.stderr);
    assert_eq!(acquired[0]["lease"], "default/demo");
    assert!(acquired[0]["token"].is_string());
}

#[test]
fn a_closed_or_full_stderr_stops_nobody() {
    let world = World::on_files();
    // Nobody ever reads, and the pipe is full from the start.
    let script = format!(
        "exec 2>&1; ( {exe} --lease demo --store file:{store} --lease-duration 5s -vv -- sleep 10; \
         echo $? >{path}/code ) | sleep 60",
        exe = env!("CARGO_BIN_EXE_lease-exec"),
        store = world.store().display(),
        path = world.path().display(),
    );
    let mut shell = Command::new("sh");
    let mut shell = shell
        .args(["-c", &script])
        .process_group(0)
        .spawn()
        .expect("sh runs");
    world.wait_for_holder();
    for _ in 0..10 {
        world.wait_for_renewal();
    }
    let code = crate::wait::wait_until("lease-exec has ended", crate::wait::LIMIT, || {
        fs::read_to_string(world.path().join("code"))
            .ok()
            .filter(|text| !text.is_empty())
    });
    assert_eq!(code.trim(), "0");
    let group = nix::unistd::Pid::from_raw(i32::try_from(shell.id()).expect("a pid"));
    nix::sys::signal::killpg(group, Signal::SIGKILL).expect("the shell's group can be killed");
    shell.wait().expect("sh ends");

    let script = "exec 2>&-; exec \"$0\" \"$@\"";
    let mut closed = Command::new("sh");
    let store = format!("file:{}", world.store().display());
    closed.args([
        "-c",
        script,
        env!("CARGO_BIN_EXE_lease-exec"),
        "-vv",
        "--lease",
        LEASE,
        "--store",
        &store,
    ]);
    let status = closed
        .args(["--", "sh", "-c", "exit 9"])
        .status()
        .expect("sh runs");
    assert_eq!(status.code(), Some(9));
}

use std::os::unix::process::CommandExt as _;
