//! `meshkv-stress`: loads an HTTP key-value server, looks at every answer, and reports what it saw.

use clap::Parser;
use meshkv_stress::modes;
use meshkv_stress::options::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    match modes::main(Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err((code, message)) => {
            eprintln!("error: {message}");
            ExitCode::from(code)
        }
    }
}
