//! The peer protocol: its frames as bytes ([`frame`], [`operation`]) and the link that carries them
//! ([`link`]). Specified in `proto-spec/peer.md`; this is one implementation of that page.

pub(crate) mod beat;
pub(crate) mod digest;
pub mod frame;
pub mod link;
pub(crate) mod member;
pub mod operation;
pub(crate) mod read;

pub use frame::Frame;
pub use read::Defect;

#[cfg(test)]
mod vector_tests;
