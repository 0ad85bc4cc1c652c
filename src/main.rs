//! The program: a thin shell around the library.

mod cli;

/// The store allocates for itself; what is left (connections, answers in flight, start-up) is small and
/// frequent, which mimalloc serves faster than the C library does. The library leaves the choice to its
/// program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::run()
}
