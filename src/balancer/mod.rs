//! The TCP balancer: finds the containers of a compose service by itself and routes connections to those
//! that are healthy. [`core`] decides; what is beside it moves bytes.

pub mod core;
