use super::*;

fn parsed(argv: &[&str]) -> Result<Config, String> {
    let argv = std::iter::once("lease-exec")
        .chain(argv.iter().copied())
        .map(OsString::from);
    match parse(argv) {
        Ok(Request::Run(config)) => Ok(*config),
        Ok(Request::Print(text)) => Err(format!("printed {text}")),
        Err(error) => Err(error.to_string()),
    }
}

fn config(argv: &[&str]) -> Config {
    parsed(argv).expect("a good command line")
}

#[test]
fn clap_finds_no_fault_with_the_definition() {
    command().debug_assert();
}

#[test]
fn arguments_after_the_command_are_the_commands() {
    for argv in [
        &["-l", "demo", "--", "ls", "-l", "--lease", "y", "--", ""][..],
        &["-l", "demo", "ls", "-l", "--lease", "y", "--", ""],
    ] {
        assert_eq!(config(argv).command, ["ls", "-l", "--lease", "y", "--", ""]);
    }
    assert_eq!(
        config(&["-l", "demo", "--", "--weird"]).command,
        ["--weird"]
    );
}

#[test]
fn bad_input_gets_one_sentence() {
    let cases: &[(&[&str], &str)] = &[
        (&["ls"], "no lease is named"),
        (&["-l", "demo"], "no command is given"),
        (
            &["-l", "demo", "--bogus", "ls"],
            "unexpected argument '--bogus' found",
        ),
        (
            &["-l", "Demo", "ls"],
            "the lease name \"Demo\" has 'D' at position 1, but only",
        ),
        (
            &["-l", "de_mo", "ls"],
            "the lease name \"de_mo\" has '_' at position 3, but only",
        ),
        (&["-l", "-demo", "ls"], "unexpected argument '-d' found"),
        (
            &["--lease=-demo", "ls"],
            "the lease name \"-demo\" has '-' where each part must",
        ),
        (
            &["-l", "a..b", "ls"],
            "the lease name \"a..b\" has an empty part",
        ),
        (&["-l", "", "ls"], "the lease name is empty"),
        (
            &["-l", "a/b/c", "ls"],
            "the lease name \"b/c\" has '/' at position 2",
        ),
        (
            &["-l", "a.b/c", "ls"],
            "the namespace \"a.b\" has '.' at position 2",
        ),
        (
            &["-l", "a/b", "-n", "c", "ls"],
            "--lease names the namespace \"a\", but --namespace names \"c\"",
        ),
        (
            &["-l", "demo", "--store", "etcd", "ls"],
            "--store is \"etcd\", but must be",
        ),
        (
            &["-l", "demo", "--store", "file:", "ls"],
            "--store file: needs a directory",
        ),
        (
            &["-l", "demo", "--wait", "soon", "ls"],
            "invalid value 'soon' for '--wait <DURATION>': it is not a duration, such as 5s or 1m30s (see",
        ),
        (
            &["-l", "demo", "--wait", "-1s", "ls"],
            "invalid value '-1s' for '--wait <DURATION>': it is not a duration",
        ),
        (
            &["-l", "demo", "--wait", "--", "ls"],
            "invalid value '--' for '--wait <DURATION>': it is not a duration",
        ),
        (
            &["-l", "demo", "-E", "-1", "ls"],
            "invalid value '-1' for '--conflict-exit-code <N>': -1 is not in 0..=255",
        ),
        (
            &["-l", "demo", "--wait", "5s", "--no-wait", "ls"],
            "--wait and --no-wait exclude",
        ),
        (
            &["-l", "demo", "-E", "256", "ls"],
            "invalid value '256' for '--conflict-exit-code <N>'",
        ),
        (
            &["-l", "demo", "-q", "-v", "ls"],
            "--quiet and --verbose exclude",
        ),
        (
            &["-l", "demo", "--server-clock-skew", "x", "ls"],
            "--server-clock-skew is \"x\", but must be a duration, such as 5s or 1m30s, or \"off\"",
        ),
        (
            &["-l", "demo", "--identity", "", "ls"],
            "--identity is empty",
        ),
        (
            &["-l", "demo", "--identity", "a\nb", "ls"],
            "--identity holds the control character '\\n'",
        ),
        (
            &["-l", "demo", "--renew-deadline", "14s", "ls"],
            "renew-deadline 14s must be at most 12.97",
        ),
    ];
    for (argv, expected) in cases {
        let message = parsed(argv).expect_err("bad input");
        assert!(message.starts_with(expected), "{argv:?}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
    let long = "x".repeat(254);
    let message = parsed(&["-l", &long, "ls"]).expect_err("too long");
    assert_eq!(
        message,
        "the lease name has 254 characters, but at most 253 are allowed"
    );
}

#[test]
fn a_namespace_may_stand_before_the_name() {
    let config = config(&["-l", "ops/nightly.v1", "-n", "ops", "ls"]);
    assert_eq!(config.namespace.as_deref(), Some("ops"));
    assert_eq!(&*config.name, "nightly.v1");
}

#[test]
fn no_wait_is_a_wait_of_zero() {
    assert_eq!(config(&["-l", "demo", "ls"]).wait, None);
    assert_eq!(
        config(&["-l", "demo", "--no-wait", "ls"]).wait,
        Some(Duration::ZERO)
    );
    assert_eq!(
        config(&["-l", "demo", "-w", "0s", "ls"]).wait,
        Some(Duration::ZERO)
    );
    assert_eq!(
        config(&["-l", "demo", "-w", "1m", "ls"]).wait,
        Some(Duration::from_secs(60))
    );
}

#[test]
fn every_option_has_an_environment_name_of_its_own() {
    for arg in command().get_arguments().filter(|arg| !arg.is_positional()) {
        let long = arg.get_long().expect("every option has a long name");
        if ["help", "version"].contains(&long) {
            continue;
        }
        let expected = format!("LEASE_EXEC_{}", long.to_uppercase().replace('-', "_"));
        assert_eq!(
            arg.get_env().and_then(|name| name.to_str()),
            Some(expected.as_str())
        );
    }
}

#[test]
fn a_stop_signal_is_a_name_or_a_number() {
    let number = |text| {
        config(&["-l", "demo", "-s", text, "ls"])
            .stop_signal
            .number()
    };
    for (text, signal) in [
        ("TERM", 15),
        ("SIGTERM", 15),
        ("sigwinch", 28),
        ("usr1", 10),
        ("2", 2),
        ("RTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("rtmax", 64),
        ("RTMAX-14", 50),
        ("64", 64),
    ] {
        assert_eq!(number(text), signal, "{text}");
    }
    assert_eq!(config(&["-l", "demo", "ls"]).stop_signal.number(), 15);
    for (text, why) in [
        ("KILL", "no program can be asked to end by it"),
        ("19", "no program can be asked to end by it"),
        ("SIGCONT", "no program can be asked to end by it"),
        ("CHLD", "no program can be asked to end by it"),
        ("TSTP", "no program can be asked to end by it"),
        ("32", "no program can be asked to end by it"),
        ("0", "it is not a signal"),
        ("65", "it is not a signal"),
        ("-1", "it is not a signal"),
        ("RTMIN+31", "it is not a signal"),
        ("RTMAX-31", "it is not a signal"),
        ("RTMINUS", "it is not a signal"),
        ("TERMINATE", "it is not a signal"),
    ] {
        let said = parsed(&["-l", "demo", "-s", text, "ls"]).expect_err("refused");
        assert!(said.contains(why), "{text}: {said}");
    }
}
