//! What was really done to the instances, counted where it happens.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

static INJECTED: Mutex<BTreeMap<&str, u64>> = Mutex::new(BTreeMap::new());

/// Counts a fault that has just taken effect.
pub(crate) fn count(fault: &'static str) {
    let mut injected = INJECTED.lock().unwrap_or_else(PoisonError::into_inner);
    *injected.entry(fault).or_default() += 1;
}

/// Lists a fault that may take effect, so that one that never did shows as a zero.
pub(crate) fn list(fault: &'static str) {
    let mut injected = INJECTED.lock().unwrap_or_else(PoisonError::into_inner);
    injected.entry(fault).or_default();
}

/// All that was counted or listed so far, by name.
pub(crate) fn counts() -> BTreeMap<&'static str, u64> {
    let injected = INJECTED.lock().unwrap_or_else(PoisonError::into_inner);
    injected.clone()
}
