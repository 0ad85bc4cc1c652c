//! What every other folder may use: time, versions, small pure helpers. Imports nothing but `std`.

pub mod clock;
pub mod memory;
pub mod random;
pub mod version;
