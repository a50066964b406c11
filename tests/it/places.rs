//! Places where nobody looks on: cron's environment.

use crate::world::World;

/// What cron gives a line of a crontab: hardly any variables, no terminal, no standard input. Whatever
/// is printed is sent by mail.
const CRON: &str = "exec env -i HOME=/ PATH=/usr/bin:/bin setsid --wait";

#[test]
fn cron_sends_no_mail_when_all_is_well_or_the_lease_is_held() {
    let world = World::on_files();
    let run = |options: &str, command: &str| {
        let lx = world.lx().replace("-q", &format!("-q {options}"));
        world.shell(&format!("{CRON} {lx} {command}")).run()
    };
    let finished = run("--no-wait", "true");
    finished.assert_code(0);
    assert_eq!((finished.stdout(), &finished.stderr[..]), ("".into(), ""));
    // What the command says is what the mail is for, and so is what goes wrong.
    let finished = run("--no-wait", "sh -c 'echo out; echo err >&2; exit 3'");
    finished.assert_code(3);
    assert_eq!(
        (finished.stdout(), &finished.stderr[..]),
        ("out\n".into(), "err\n")
    );
    let finished = run("--no-wait", "/no/such/command");
    finished.assert_code(127);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);

    let holder = world.lease_exec().command(["sleep", "77"]).start();
    world.wait_for_holder();
    for (options, code) in [
        ("--no-wait", 75),
        ("--no-wait -E 0", 0),
        ("--wait 200ms", 75),
    ] {
        let finished = run(options, "echo never");
        finished.assert_code(code);
        assert_eq!((finished.stdout(), &finished.stderr[..]), ("".into(), ""));
    }
    holder.signal(nix::sys::signal::Signal::SIGTERM);
    holder
        .wait()
        .assert_signal(nix::sys::signal::Signal::SIGTERM);
}
