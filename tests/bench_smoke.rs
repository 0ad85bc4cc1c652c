//! Runs every part of the benchmark with small numbers, so that it still works when somebody needs it. No
//! figure is judged. Peers that are not installed are skipped, and said to be.
#![allow(clippy::duplicate_mod, reason = "each benchmark brings along what they share")]

#[path = "../benches/node/main.rs"]
mod node;

#[path = "../benches/mesh/main.rs"]
mod mesh;

#[path = "../benches/peers/main.rs"]
mod peers;

#[path = "../benches/balancer/main.rs"]
mod balancer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().any(|argument| argument == "--list") {
        println!("bench_smoke: test");
        return Ok(());
    }
    let rows = node::smoke()?;
    for wanted in [
        "GET unpipelined, 32 connections: CPU ÷ floor",
        "GET 16 deep: CPU ÷ floor",
        "SET unpipelined: CPU ÷ floor",
        "SET 16 deep: CPU ÷ floor",
        "one hot key",
        "UNIX socket",
        "idle connections: resident bytes each",
        "p99.9 beside a slow /getAll",
        "embedded without observers",
        "bytes an entry, 16+32",
        "bytes an entry, 24+128",
        "after value sizes churn",
        "after shrinking",
        "two workers ÷ one",
    ] {
        assert!(rows.iter().any(|row| row.contains(wanted)), "no row about {wanted:?} in {rows:#?}");
    }
    let mut count = rows.len();
    let rows = mesh::smoke()?;
    for wanted in [
        "SET unpipelined: SETs per CPU of the writer, mesh of 3 ÷ alone",
        "SET 16 deep: CPU of a receiver per operation",
        "w=all, three nodes: p50 beyond w=local",
        "from the answer on A until it is read on B",
        "idle mesh of 6, the busiest node",
        "records missed, or too many",
        "during the copy ÷ idle",
        "log kept: bytes sent",
        "log lost: CPU",
        "highest log ÷ its bound",
    ] {
        assert!(rows.iter().any(|row| row.contains(wanted)), "no row about {wanted:?} in {rows:#?}");
    }
    count += rows.len();
    let rows = peers::smoke()?;
    for wanted in [
        "| 2 | uniform | GET | 1 | ",
        "| 200 | zipf 0.99 | SET | 16 | ",
        "| 2000 | zipf 0.99 | MIX | 16 | ",
        "2000 records: meshkv",
        "| meshkv | ",
        "| three nodes behind the balancer | ",
        "SET, three nodes behind the balancer: CPU ns per request, all processes",
    ] {
        assert!(rows.iter().any(|row| row.contains(wanted)), "no row about {wanted:?} in {rows:#?}");
    }
    count += rows.len();
    if let Some(rows) = balancer::smoke()? {
        for wanted in ["requests ÷ HAProxy", "connections ÷ HAProxy", "bytes ÷ HAProxy, splice"] {
            assert!(rows.iter().any(|row| row.contains(wanted)), "no row about {wanted:?} in {rows:#?}");
        }
        count += rows.len();
    }
    println!("bench_smoke: {count} rows");
    Ok(())
}
