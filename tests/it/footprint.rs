//! What lease-exec takes of a machine: the bytes of the program that is shipped, and what a standby
//! takes that has nothing to do but to wait.
//!
//! Neither is a matter of luck, as time is, so both have limits. `cargo test --test it footprint --
//! --nocapture` prints the figures; `cargo bench` has those of others beside them.

use std::fs::{self, File};

use crate::{
    image::static_binary,
    init::namespace,
    memory,
    wait::{LIMIT, wait_until},
    world::{Invocation, Running, World},
};

#[test]
fn static_program_is_small() {
    let program = static_binary();
    let size = fs::metadata(program).expect("it is there").len();
    eprintln!("{} has {size} bytes", program.display());
    let largest = match program.to_string_lossy().contains("-musl/") {
        true => LARGEST_PROGRAM,
        false => LARGEST_PROGRAM_WITH_GLIBC,
    };
    assert!(size <= largest, "{size} bytes are more than {largest}");
}

#[test]
fn standby_takes_little_memory() {
    let world = World::on_kubernetes();
    let _holder = hold(&world);
    let _standby = stand_by(&world, |standby| standby);
    assert_small(&world, "lease-exec");
    assert_small(&world, "lease-guard");
}

#[test]
fn standby_as_pid_1_takes_little_memory() {
    let world = World::on_kubernetes();
    let _holder = hold(&world);
    let _standby = stand_by(&world, |standby| standby.under(namespace()));
    assert_small(&world, "lease-init");
    assert_small(&world, "lease-exec");
    assert_small(&world, "lease-guard");
}

#[test]
fn neither_guard_nor_init_of_a_standby_wakes_up() {
    let world = World::on_kubernetes();
    let _holder = hold(&world);
    let _standby = stand_by(&world, |standby| standby.under(namespace()));
    let own = ["lease-init", "lease-guard"].map(|name| one(&world, name));
    let wake_ups = || own.map(|pid| memory::activity(pid).wake_ups);

    let before = wake_ups();
    // The front is told of each.
    for _ in 0..3 {
        world.wait_for_renewal();
    }
    assert_eq!(wake_ups(), before);
}

/// Starts the shipped program as the holder.
fn hold(world: &World<'static>) -> Running {
    // What is still to be written to the disk would count as the processes' own.
    let program = File::open(static_binary()).expect("it is there");
    program.sync_all().expect("it can be written to the disk");

    let holder = world.lease_exec_at(static_binary());
    let holder = holder.script("echo holding; exec sleep 7777").start();
    holder.wait_until_it_prints("holding");
    holder
}

/// Starts it in a certain way as a standby, and waits until that has nothing left to do. Of all
/// processes only the standby's are known by the world's mark.
fn stand_by(world: &World<'static>, way: impl Fn(Invocation) -> Invocation) -> Running {
    let (mark, value) = world.mark();
    let standby = world.lease_exec_at(static_binary()).command(["true"]);
    let standby = way(standby.env(mark, value)).start();
    standby.wait_until_it_says("somebody else holds the lease");
    // The watch is open when the front is told of renewals, of which there is one in two seconds.
    let front = one(world, "lease-exec");
    for _ in 0..3 {
        let before = memory::activity(front).wake_ups;
        world.wait_for_renewal();
        wait_until("the standby is told of a renewal", LIMIT, || {
            (memory::activity(front).wake_ups != before).then_some(())
        });
    }
    standby
}

/// The standby's process of this name.
#[track_caller]
fn one(world: &World<'static>, name: &str) -> i32 {
    world.wait_for_processes(name, 1)[0]
}

/// Asserts that a process takes no memory beyond the program, which all of them share, but for a
/// little.
#[track_caller]
fn assert_small(world: &World<'static>, name: &str) {
    let memory = memory::of(one(world, name));
    eprintln!("{name} of a standby: {memory:?}");
    let private = memory.private_dirty_kib * 1024;
    assert!(
        private <= LARGEST_PRIVATE,
        "{name} keeps {private} bytes to itself, which is more than {LARGEST_PRIVATE}"
    );
    // How much of the program is in memory depends on how the kernel keeps the file.
    let program = fs::metadata(static_binary()).expect("it is there").len();
    let resident = memory.resident_kib * 1024;
    let largest = program + LARGEST_PRIVATE;
    assert!(
        resident <= largest,
        "{name} has {resident} bytes in memory, which is more than {largest}"
    );
}

/// In bytes. What is shipped is linked with musl.
const LARGEST_PROGRAM: u64 = 7_000_000;

/// In bytes. Of glibc, a program that is linked with it statically takes the resolver, the locales
/// and the character sets too, whether it needs them or not.
const LARGEST_PROGRAM_WITH_GLIBC: u64 = 7_400_000;

/// In bytes.
const LARGEST_PRIVATE: u64 = 1_000_000;
