//! The contract, held against the file store.

use std::fs;

use lease_exec::names::{LeaseName, Namespace};
use lease_exec::store::file::FileStore;
use serde_json::Value;
use tempfile::TempDir;

use super::Place;

super::contract!(Directory::new);
super::contract!(Directory::new: lease_just_written_never_looks_old);

struct Directory {
    directory: TempDir,
}

impl Directory {
    fn new(_case: &str) -> Self {
        Self {
            directory: tempfile::tempdir().expect("make a directory"),
        }
    }
}

impl Place for Directory {
    type Store = FileStore;

    fn open(&self) -> FileStore {
        let namespace = Namespace::new("contract").expect("it is one");
        let name = LeaseName::new("nightly").expect("it is one");
        FileStore::open(self.directory.path(), &namespace, &name)
            .unwrap_or_else(|failure| panic!("failed to {}", failure.message))
    }

    fn object(&self) -> Option<Value> {
        let text = fs::read_to_string(self.open().path()).ok()?;
        Some(serde_json::from_str(&text).expect("the file is JSON"))
    }

    /// As an editor does, that is, without a new version.
    fn put(&self, object: Value) {
        fs::write(self.open().path(), object.to_string()).expect("edit the file");
    }

    fn delete(&self) {
        fs::remove_file(self.open().path()).expect("remove the file");
    }
}
