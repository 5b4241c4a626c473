//! What a request says: its fields, checked.

pub(in crate::api) mod body;
pub(in crate::api) mod constraint;
pub(in crate::api) mod error;
pub(in crate::api) mod fields;
pub(in crate::api) mod messages;
pub(in crate::api) mod notes;
pub(in crate::api) mod request;
pub(in crate::api) mod samplers;
pub(in crate::api) mod steering;
pub(in crate::api) mod thoughts;
pub(in crate::api) mod tools;
