//! What a history says of requests, answers and events.
//!
//! Must not: decide or count anything.

use std::fmt;

use super::{wire::Request, world::World};
use crate::{
    election::Reply,
    lease::{Change, Claim, Outcome, Record},
};

impl World {
    /// Writes down that a node sends a request.
    pub(super) fn note_request(&mut self, request: &Request) {
        let (node, id) = (request.node, request.id);
        match &request.write {
            None => self.note(format_args!("node {node}: {id:?} reads")),
            Some(write) => {
                let record = ShownRecord(&write.record);
                match &write.base {
                    None => self.note(format_args!("node {node}: {id:?} creates {record}")),
                    Some(base) => self.note(format_args!(
                        "node {node}: {id:?} writes {record} over version {} of {}",
                        base.version, base.uid.0
                    )),
                }
            }
        }
    }
}

/// An answer on one line.
pub(super) struct Shown<'a>(pub(super) &'a Reply);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Reply::Read(Ok(None)) => write!(f, "read that there is none"),
            Reply::Read(Ok(Some(claim))) => write!(f, "read {}", ShownClaim(claim)),
            Reply::Written(Ok(Outcome::Written(claim))) => write!(f, "wrote {}", ShownClaim(claim)),
            Reply::Written(Ok(Outcome::Conflict)) => write!(f, "conflict"),
            Reply::Read(Err(failure)) | Reply::Written(Err(failure)) => {
                write!(f, "{:?}: {}", failure.kind, failure.message)
            }
        }
    }
}

/// A watch's event on one line.
pub(super) struct ShownChange<'a>(pub(super) &'a Change);

impl fmt::Display for ShownChange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Change::Written(claim) => write!(f, "saw {}", ShownClaim(claim)),
            Change::Deleted(claim) => write!(f, "saw the deletion of {}", ShownClaim(claim)),
            Change::Ended(why) => write!(f, "ended: {why}"),
            Change::Refused(failure) => write!(f, "refused: {}", failure.message),
        }
    }
}

struct ShownClaim<'a>(&'a Claim);

impl fmt::Display for ShownClaim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Claim { uid, version, .. } = self.0;
        let record = ShownRecord(&self.0.record);
        write!(f, "version {version} of {}: {record}", uid.0)
    }
}

struct ShownRecord<'a>(&'a Record);

impl fmt::Display for ShownRecord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.holder {
            None => write!(f, "nobody's")?,
            Some(holder) => write!(f, "held by {holder}")?,
        }
        match self.0.duration {
            None => write!(f, " for no duration")?,
            Some(duration) => write!(f, " for {duration:?}")?,
        }
        write!(f, ", transition {}", self.0.transitions)
    }
}
