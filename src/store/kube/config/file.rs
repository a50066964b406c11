//! The files of a configuration: read once, whole, and only if they can be what they should.
//!
//! Must not: know what a file is for, but for its name in a message and a kubeconfig's own paths.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    path::{MAIN_SEPARATOR, Path},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use kube::config::Kubeconfig;
use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

use super::{explain, misconfigured};
use crate::lease::Failure;

/// Reads a kubeconfig, with its relative paths made absolute: they start from where it lies.
///
/// As kubectl does it, a command is only taken for a path if it has a slash.
pub(super) fn kubeconfig(path: &Path) -> Result<Kubeconfig, Failure> {
    let wrong =
        |why: String| misconfigured(format!("{} is not a kubeconfig: {why}", path.display()));
    let text = text(read("the kubeconfig", path)?);
    let text = text.ok_or_else(|| wrong("it is no text in UTF-8 or UTF-16".into()))?;
    let mut config = parse(&text).map_err(wrong)?;
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

fn make_absolute(directory: &Path, path: &mut Option<String>) {
    *path = path.take().map(|path| {
        let absolute = directory.join(&path);
        absolute.to_str().map_or(path, str::to_owned)
    });
}

/// Reads YAML as kubectl does: the first document alone, and of two equal keys the last one.
///
/// # Errors
///
/// Why it is no kubeconfig.
fn parse(text: &str) -> Result<Kubeconfig, String> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    let mut bytes = text.as_bytes();
    let mut documents = serde_saphyr::read_with_options(&mut bytes, options);
    let first: Option<Value> = documents
        .next()
        .transpose()
        .map_err(|error| explain::syntax(&error))?;
    let Some(mut document) = first else {
        return Ok(Kubeconfig::default());
    };
    if !document.is_object() {
        return Err("it is no mapping".into());
    }
    for (field, only) in [("kind", "Config"), ("apiVersion", "v1")] {
        if let Some(Value::String(other)) = document.get(field)
            && ![only, ""].contains(&other.as_str())
        {
            return Err(format!("its {field} is {other:?} instead of {only}"));
        }
    }
    strip(&mut document);
    for list in ["clusters", "contexts", "users"] {
        if let Some(Value::Array(entries)) = document.get_mut(list) {
            check_names(list, entries)?;
        }
    }
    let mut config: Kubeconfig =
        serde_path_to_error::deserialize(document).map_err(|error| explain::field(&error))?;
    let users = config.auth_infos.iter_mut();
    let plugins = users.filter_map(|user| user.auth_info.as_mut()?.exec.as_mut());
    for variable in plugins.flat_map(|plugin| plugin.env.iter_mut().flatten()) {
        variable.entry("value".into()).or_default();
    }
    Ok(config)
}

/// Takes out what says nothing: null and empty texts. Extensions are not ours to change.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null() && value != "");
            let fields = fields.iter_mut().filter(|(name, _)| *name != "extensions");
            fields.for_each(|(_, value)| strip(value));
        }
        Value::Array(values) => values.iter_mut().for_each(strip),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Takes out the entries without a name, which nothing can refer to, and refuses two of one name.
fn check_names(list: &str, entries: &mut Vec<Value>) -> Result<(), String> {
    entries.retain(|entry| entry.is_string() || entry.get("name").is_some());
    let mut names = HashSet::new();
    for entry in entries {
        let name = entry["name"].to_string();
        if !names.insert(name.clone()) {
            return Err(format!("two of its {list} have the name {name}"));
        }
        // Only the context that is used needs one.
        if let Some(Value::Object(context)) = entry.get_mut("context") {
            context.entry("cluster").or_insert("".into());
        }
    }
    Ok(())
}

/// Whether it is as good as no kubeconfig.
pub(super) fn says_nothing(config: &Kubeconfig) -> bool {
    config.clusters.is_empty()
        && config.contexts.is_empty()
        && config.auth_infos.is_empty()
        && config.current_context.is_none()
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

/// Reads a file that holds a token and nothing else; what is no text becomes what no token can have.
///
/// # Errors
///
/// As [`read`]; also if it is empty.
pub(super) fn token(path: &Path) -> Result<String, Failure> {
    let token = String::from_utf8_lossy(&read("the token", path)?)
        .trim()
        .to_owned();
    match token.is_empty() {
        true => Err(misconfigured(format!(
            "the token {} is empty",
            path.display()
        ))),
        false => Ok(token),
    }
}

/// What is in a field of `owner`, either itself, in base64, or in the file that is named by it.
///
/// # Errors
///
/// [`crate::lease::FailureKind::Misconfigured`], naming the file or the field.
pub(super) fn contents(
    field: &str,
    (path, data): (Option<String>, Option<String>),
    owner: &str,
) -> Result<Option<Vec<u8>>, Failure> {
    if let Some(data) = data {
        // Go passes over line ends. What YAML makes of them, a space, means the same.
        let data: String = data.split_whitespace().collect();
        return match BASE64.decode(data) {
            Ok(contents) => Ok(Some(contents)),
            Err(_) => Err(misconfigured(format!(
                "the {field}-data of {owner} is not base64"
            ))),
        };
    }
    let what = format!("the {field}");
    path.map(|path| read(&what, Path::new(&path))).transpose()
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
