//! A holder in name only.

use serde_json::{Value, json};

use crate::{
    contender::{Contender, Ground},
    control_plane::ControlPlane,
};

/// A holder that is only a record, written by this program.
pub(crate) struct Stub<'a> {
    control_plane: &'a ControlPlane,
    lease: &'static str,
    object: Value,
}

impl<'a> Stub<'a> {
    /// Prepares to write to the Lease of that contender.
    pub(crate) fn of(ground: &'a Ground, contender: Contender) -> Self {
        let lease = ground.lease_of(contender);
        let control_plane = ground.control_plane();
        let stored = control_plane.get_lease("default", lease);
        Self {
            control_plane,
            lease,
            object: stored.unwrap_or_else(|| json!({"metadata": {}})),
        }
    }

    /// Whether somebody holds the Lease.
    pub(crate) fn is_held(&self) -> bool {
        let holder = self.object["spec"]["holderIdentity"].as_str();
        holder.is_some_and(|holder| !holder.is_empty())
    }

    /// Acquires, renews, or releases if the holder has no name, by one PUT.
    pub(crate) fn write(&mut self, holder: &str) {
        let mut object = self.object.take();
        let transitions = object["spec"]["leaseTransitions"].as_u64();
        object["spec"] = json!({
            "holderIdentity": holder,
            "leaseDurationSeconds": 15,
            "leaseTransitions": transitions.unwrap_or_default(),
            "renewTime": format!("{:.6}", jiff::Timestamp::now()),
        });
        self.object = self.control_plane.put_lease("default", self.lease, object);
    }
}
