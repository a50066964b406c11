//! What the command inherits is what it would have without lease-exec, and nothing of ours.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    time::Instant,
};

use crate::{
    shell::Process,
    wait::{LIMIT, wait_until},
    world::{Finished, World},
};

/// Runs a bash script twice, in which `$RUN` is lease-exec and then nothing, and returns what was
/// printed.
#[track_caller]
fn with_and_without(world: &World<'static>, script: &str) -> [Finished; 2] {
    let lx = world.lx();
    [&lx[..], ""].map(|run| world.shell(script).env("RUN", run).run())
}

#[track_caller]
fn assert_same(world: &World<'static>, script: &str) -> String {
    let [with, without] = with_and_without(world, script);
    assert_eq!(
        with.status, without.status,
        "{script}\n{with:?}\n{without:?}"
    );
    assert_eq!(with.stdout(), without.stdout(), "{script}");
    assert_eq!(with.stderr, "", "{script}");
    assert_ne!(without.stdout(), "", "{script} shows nothing");
    with.stdout()
}

#[test]
fn mask_and_dispositions_are_those_at_entry() {
    let world = World::on_files();
    let show = "grep -E 'Sig(Blk|Ign|Cgt)|ShdPnd' /proc/self/status";
    for options in [
        "",
        "--ignore-signal=TTOU,SEGV,INT --block-signal=TTIN,ILL,TERM",
        "--ignore-signal=PIPE --block-signal=HUP,CHLD",
        "--ignore-signal=HUP,CHLD --block-signal=PIPE,ALRM",
        "--ignore-signal=RTMIN+3,RTMAX --block-signal=RTMIN,RTMAX-1",
        "--ignore-signal --block-signal",
        "--default-signal",
    ] {
        assert_same(&world, &format!("exec env {options} $RUN {show}"));
    }
    let shown = assert_same(&world, &format!("trap '' PIPE; exec $RUN {show}"));
    assert!(shown.contains("SigIgn:\t"), "{shown}");
}

#[test]
fn limits_priority_umask_directory_and_ids_are_those_at_entry() {
    let world = World::on_files();
    for script in [
        "ulimit -n 123; ulimit -c 7; ulimit -u 4000; exec $RUN cat /proc/self/limits",
        "umask 027; exec $RUN sh -c umask",
        "exec nice -n 7 $RUN nice",
        "cd /usr/share; exec $RUN readlink /proc/self/cwd",
        "echo 321 >/proc/self/oom_score_adj; exec $RUN cat /proc/self/oom_score_adj",
        "exec $RUN grep -v ^0:: /proc/self/cgroup",
        "exec $RUN grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp|Cpus_allowed|Umask):' \
            /proc/self/status",
        "chrt --batch 0 $RUN chrt --pid 0 | sed 's/^pid [0-9]*//'",
        "exec $RUN readlink /proc/self/ns/pid /proc/self/ns/mnt /proc/self/ns/net",
    ] {
        assert_same(&world, script);
    }
}

#[test]
fn descriptors_reach_the_command_and_ours_do_not() {
    let world = World::on_files();
    let show = "sh -c 'for fd in /proc/self/fd/*; do echo ${fd##*/} $(readlink /proc/$$/fd/${fd##*/}); done'";
    for redirections in [
        "",
        "3</dev/null 7</dev/zero 63</etc/passwd",
        "<&-",
        "<&- 3</dev/null",
    ] {
        // Pipes and the file for standard error have another name each time.
        let script = format!("$RUN {show} {redirections} | sed 's/\\(pipe:\\|stderr-\\).*/\\1/'");
        let shown = assert_same(&world, &script);
        assert_eq!(
            shown.contains("63 /etc/passwd"),
            redirections.contains("63")
        );
    }
}

#[test]
fn standard_descriptors_that_were_closed_stay_closed() {
    let world = World::on_files();
    let seen = world.path().join("seen").display().to_string();
    for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"] {
        let fds = ["$LX", ""].map(|run| {
            let script = format!(
                "{run} sh -c 'for fd in 0 1 2 3; do [ -e /proc/$$/fd/$fd ] && echo $fd; done \
                 9>&- >{seen}' {closed}"
            );
            world.shell(&script).run();
            fs::read_to_string(&seen).expect("the command has written it")
        });
        assert_eq!(fds[0], fds[1], "{closed}");
        assert_eq!(fds[0].contains('0'), !closed.contains("<&-"), "{closed}");
    }
}

#[test]
fn guard_and_init_keep_no_directory_and_no_descriptor_that_was_inherited() {
    let world = World::on_files();
    let path = world.path().canonicalize().expect("it is there");
    let pipe = path.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
    let script = "exec 7<>pipe; exec $LX sh -c 'echo started; exec sleep 77'";
    let unshare = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    let root: &[&str] = if nix::unistd::geteuid().is_root() {
        &[]
    } else {
        &["-r"]
    };
    let arguments = [&unshare, root, &["bash", "-c", script]].concat();
    let running = world
        .script_of("unshare", &arguments)
        .directory(&path)
        .start();
    running.wait_until_it_prints("started");
    for name in ["lease-guard", "lease-init"] {
        let pid = world.wait_for_processes(name, 1)[0];
        let link = |what: &str| fs::read_link(format!("/proc/{pid}/{what}"));
        // The guard lets go once it has started the command.
        wait_until(format!("{name} is in the root directory"), LIMIT, || {
            (link("cwd").ok()? == Path::new("/")).then_some(())
        });
        wait_until(format!("{name} has let go of the pipe"), LIMIT, || {
            link("fd/7").is_err().then_some(())
        });
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("ours");
        for descriptor in descriptors {
            let target = fs::read_link(descriptor.expect("ours").path()).expect("ours");
            assert!(!target.starts_with(&path), "{name} has {target:?} open");
        }
    }
    let sleep = world.wait_for_processes("sleep", 1)[0];
    let inherited = fs::metadata(format!("/proc/{sleep}/fd/7")).expect("the command has it");
    assert_eq!(
        inherited.ino(),
        fs::metadata(&pipe).expect("it is there").ino()
    );
}

#[test]
fn sockets_that_were_passed_to_us_are_the_commands() {
    let world = World::on_files();
    let show = "sh -c 'echo $LISTEN_PID is $$, $LISTEN_FDS'";
    let finished = world
        .shell(&format!(
            "LISTEN_FDS=1 LISTEN_PID=$$ exec $LX {show} 3</dev/null"
        ))
        .run();
    let text = finished.stdout();
    let (listen, rest) = text.trim().split_once(" is ").expect("two numbers");
    assert_eq!(format!("{listen}, 1"), rest);
    // Somebody else's stays as it is.
    let finished = world
        .shell(&format!("LISTEN_FDS=1 LISTEN_PID=1 exec $LX {show}"))
        .run();
    assert!(finished.stdout().starts_with("1 is "), "{finished:?}");
    assert!(finished.stdout().ends_with(", 1\n"), "{finished:?}");
}

#[test]
fn the_environment_differs_only_in_the_documented_variables() {
    let world = World::on_files();
    let [with, without] = with_and_without(
        &world,
        "unset RUN_ME; ODD='two
lines' EMPTY= exec $RUN printenv --null",
    );
    let variables = |finished: &Finished| {
        let text = finished.stdout();
        let all = text.split('\0').map(str::to_owned);
        all.filter(|variable| !variable.is_empty() && !variable.starts_with("RUN="))
            .collect::<Vec<_>>()
    };
    let (with, without) = (variables(&with), variables(&without));
    let added = with.iter().filter(|variable| !without.contains(variable));
    let mut names: Vec<&str> = added
        .map(|variable| variable.split('=').next().expect("split gives one"))
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "LEASE_FENCING_TOKEN",
            "LEASE_HOLDER_IDENTITY",
            "LEASE_NAME",
            "LEASE_NAMESPACE",
            "LEASE_TRANSITIONS",
            "LEASE_UID",
        ]
    );
    assert!(without.iter().all(|variable| with.contains(variable)));
}

#[test]
fn a_reader_of_the_commands_output_waits_for_the_command_alone() {
    let world = World::on_files();
    // For a daemon that holds the pipe, as it is ended with the command.
    let started = Instant::now();
    let finished = world
        .shell("$LX sh -c '(setsid sleep 77 &); echo hi' | cat; echo ${PIPESTATUS[0]}")
        .run();
    assert_eq!(finished.stdout(), "hi\n0\n");
    assert!(started.elapsed() < LIMIT, "it took {:?}", started.elapsed());
    world.assert_nobody_is_left();

    // And not for us, when the command has closed its own copy.
    let script = "$LX sh -c 'echo hi; exec >&-; sleep 77' | { cat; echo eof; }";
    let running = world.shell(script).start();
    running.wait_until_it_prints("eof");
    world.wait_for_processes("sleep", 1);
    assert_eq!(running.stdout(), "hi\neof\n");
}

#[test]
fn standard_input_is_left_to_the_command() {
    let world = World::on_files();
    let input = world.path().join("input");
    fs::write(&input, "one\ntwo\n").expect("written");
    // What the command does not read is left for who comes after it.
    let finished = world
        .shell("$LX sh -c 'read -r line; echo command: $line'; echo script: $(cat)")
        .stdin(File::open(&input).expect("just written"))
        .run();
    assert_eq!(finished.stdout(), "command: one\nscript: two\n");
}

#[test]
fn children_that_it_was_started_with_are_no_business_of_its() {
    let world = World::on_files();
    let finished = world
        .shell("sleep 77 >/dev/null 2>&1 & exec $LX sh -c '(sleep 78 >/dev/null 2>&1 &); exit 4'")
        .run();
    finished.assert_code(4);
    let left = world.processes();
    let [Process { pid, name, .. }] = &left[..] else {
        panic!("one bystander, but {left:?}");
    };
    assert_eq!(name, "sleep");
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("it lives");
    assert_eq!(line, "sleep\x0077\0");
    let status = Command::new("kill").arg(pid.to_string()).status();
    assert!(status.expect("kill can be run").success());
}
