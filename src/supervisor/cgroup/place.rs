//! Where the cgroup is that this process is in.

use std::{
    ffi::OsStr,
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use nix::{
    fcntl::OFlag,
    sys::{
        stat::Mode,
        statfs::{CGROUP2_SUPER_MAGIC, fstatfs},
    },
};

use super::{super::sys, READ};

/// Opens the directory of the cgroup that this process is in.
pub(super) fn open_own() -> Result<OwnedFd> {
    let cgroups = fs::read("/proc/self/cgroup").context("can't read /proc/self/cgroup")?;
    let mounts = fs::read("/proc/self/mountinfo").context("can't read /proc/self/mountinfo")?;
    let path = own_path(&cgroups, &mounts)
        .context("no cgroup file system of version 2 shows this process's cgroup")?;
    let directory = nix::fcntl::open(&path, READ | OFlag::O_DIRECTORY, Mode::empty())
        .with_context(|| format!("can't open {}", path.display()))?;
    // Something else may be mounted over it.
    let found =
        fstatfs(&directory).with_context(|| format!("can't ask about {}", path.display()))?;
    ensure!(
        found.filesystem_type() == CGROUP2_SUPER_MAGIC,
        "{} is no cgroup of version 2",
        path.display()
    );
    // Where systemd runs, it alone writes to cgroups that it has not delegated, see its
    // CGROUP_DELEGATION.
    if Path::new("/run/systemd/system").exists() {
        ensure!(
            is_delegated(&directory),
            "systemd has not delegated {} (Delegate=yes)",
            path.display()
        );
    }
    Ok(directory)
}

fn is_delegated(directory: &OwnedFd) -> bool {
    [c"user.delegate", c"trusted.delegate"].iter().any(|name| {
        let mut value = [0; 8];
        let length = sys::read_attribute(directory.as_fd(), name, &mut value);
        length == Ok(1) && value[0] == b'1'
    })
}

/// Where this process's cgroup (v2) is mounted, from its `cgroup` and `mountinfo` in `/proc/self`,
/// see cgroups(7) and proc_pid_mountinfo(5).
fn own_path(cgroups: &[u8], mounts: &[u8]) -> Option<PathBuf> {
    let own = lines(cgroups).find_map(|line| line.strip_prefix(b"0::"))?;
    let own = Path::new(OsStr::from_bytes(own));
    let mounted = lines(mounts).filter_map(|line| {
        let dash = line.windows(3).position(|three| three == b" - ")?;
        let kind = line.get(dash + 3..)?.split(|byte| *byte == b' ').next()?;
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        (kind == b"cgroup2").then_some(())?;
        // Both are seen from our own cgroup namespace.
        let below = own.strip_prefix(root).ok()?;
        Some(point.join(below))
    });
    // The last one mounted is the one that is seen.
    mounted
        .last()
        .filter(|path| !path.components().any(|part| part.as_os_str() == ".."))
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

/// In mountinfo blanks and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";

    fn found(cgroups: &str, mounts: &[u8]) -> Option<String> {
        own_path(cgroups.as_bytes(), mounts).map(|path| path.display().to_string())
    }

    #[test]
    fn the_own_cgroup_is_found_wherever_version_2_is_mounted() {
        let cgroups = "4:memory:/other\n0::/a/b\n";
        let path = found(cgroups, HYBRID);
        assert_eq!(path.as_deref(), Some("/sys/fs/cgroup/unified/a/b"));
        let root = found("0::/\n", HYBRID);
        assert_eq!(root.as_deref(), Some("/sys/fs/cgroup/unified/"));
    }

    #[test]
    fn a_mount_that_begins_further_down_is_understood() {
        let mounts = b"9 1 0:38 /a /mnt/with\\040blank rw - cgroup2 none rw\n";
        let path = found("0::/a/b\n", mounts);
        assert_eq!(path.as_deref(), Some("/mnt/with blank/b"));
        assert_eq!(found("0::/other\n", mounts), None);
    }

    #[test]
    fn what_cannot_be_seen_is_not_found() {
        assert_eq!(found("4:memory:/a\n", HYBRID), None, "only version 1");
        assert_eq!(found("0::/../a\n", HYBRID), None, "outside our namespace");
        assert_eq!(found("0::/a\n", b""), None, "not mounted");
        assert_eq!(found("", b"nonsense\n - cgroup2\n"), None);
    }
}
