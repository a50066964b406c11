//! The files of a configuration: read once, whole, and only if they can be what they should.
//!
//! Must not: know what a file is for, but for its name in a message and a kubeconfig's own paths.

use std::{
    fs::File,
    io::{self, Read},
    path::{MAIN_SEPARATOR, Path},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use kube::config::{Kubeconfig, KubeconfigError};

use super::{explain, misconfigured};
use crate::lease::Failure;

/// Reads a kubeconfig, with its relative paths made absolute: they start from where it lies.
///
/// As kubectl does it, a command is only taken for a path if it has a slash.
pub(super) fn kubeconfig(path: &Path) -> Result<Kubeconfig, Failure> {
    let place = path.display().to_string();
    let explained =
        |error: &KubeconfigError| misconfigured(explain::kubeconfig(error, place.as_str()));
    let text = text(read("the kubeconfig", path)?).ok_or_else(|| {
        misconfigured(format!(
            "{place} is not a kubeconfig: it is no text in UTF-8 or UTF-16"
        ))
    })?;
    let mut config = Kubeconfig::from_yaml(&text).map_err(|error| explained(&error))?;
    let Some(directory) = path.parent() else {
        return Ok(config);
    };
    let clusters = config.clusters.iter_mut();
    for cluster in clusters.filter_map(|named| named.cluster.as_mut()) {
        make_absolute(directory, &mut cluster.certificate_authority);
    }
    let users = config.auth_infos.iter_mut();
    for user in users.filter_map(|named| named.auth_info.as_mut()) {
        make_absolute(directory, &mut user.client_certificate);
        make_absolute(directory, &mut user.client_key);
        make_absolute(directory, &mut user.token_file);
        if let Some(exec) = &mut user.exec
            && exec
                .command
                .as_ref()
                .is_some_and(|command| command.contains(MAIN_SEPARATOR))
        {
            make_absolute(directory, &mut exec.command);
        }
    }
    Ok(config)
}

/// An empty path is as good as none, as it is to kubectl.
fn make_absolute(directory: &Path, path: &mut Option<String>) {
    *path = path.take().filter(|path| !path.is_empty()).map(|path| {
        let absolute = directory.join(&path);
        absolute.to_str().map_or(path, str::to_owned)
    });
}

/// The bytes as text. A kubeconfig that was made on Windows may be in UTF-16, with a mark in front
/// that says so.
fn text(bytes: Vec<u8>) -> Option<String> {
    let units = |from: fn([u8; 2]) -> u16, bytes: &[u8]| {
        let (pairs, rest) = bytes.as_chunks();
        let units: Vec<u16> = pairs.iter().copied().map(from).collect();
        String::from_utf16(&units).ok().filter(|_| rest.is_empty())
    };
    match bytes.as_slice() {
        [0xff, 0xfe, rest @ ..] => units(u16::from_le_bytes, rest),
        [0xfe, 0xff, rest @ ..] => units(u16::from_be_bytes, rest),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        _ => String::from_utf8(bytes).ok(),
    }
}

/// Puts the contents of a file in the place of its name, unless they stand beside it. Returns the
/// file's name if it was read.
pub(super) fn take<T: From<String>>(
    what: &str,
    path: &mut Option<String>,
    data: &mut Option<T>,
) -> Result<Option<String>, Failure> {
    let Some(path) = path.take().filter(|_| data.is_none()) else {
        return Ok(None);
    };
    let contents = read(what, Path::new(&path))?;
    *data = Some(BASE64.encode(contents).into());
    Ok(Some(path))
}

/// Reads a file, unless it is too long to be any of a configuration's.
///
/// # Errors
///
/// [`crate::lease::FailureKind::Misconfigured`], naming the file.
pub(super) fn read(what: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let read = || {
        let mut contents = Vec::new();
        let file = File::open(path)?;
        file.take(LONGEST + 1).read_to_end(&mut contents)?;
        Ok(contents)
    };
    let contents: Vec<u8> = read()
        .map_err(|error: io::Error| misconfigured(explain::unreadable(what, path, &error)))?;
    if contents.len() as u64 > LONGEST {
        return Err(misconfigured(format!(
            "{what} {} is longer than {} MiB",
            path.display(),
            LONGEST >> 20
        )));
    }
    Ok(contents)
}

/// In bytes. A cluster with its certificates and a user takes some 6 KiB of a kubeconfig, so this
/// lasts for more than two thousand of them; no other file is as long.
const LONGEST: u64 = 16 << 20;
