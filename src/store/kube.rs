//! The Kubernetes store.
