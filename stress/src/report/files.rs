//! The files: JSON (the whole report, which can be read back), CSV (its seconds) and an `HdrHistogram` log.

use super::build::Part;
use super::{Report, SCHEMA};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

/// # Errors
/// The file cannot be written.
pub fn json(report: &Report, path: &Path) -> std::io::Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    std::fs::write(path, text)
}

/// # Errors
/// The file cannot be read, or is not a report.
pub fn read(path: &Path) -> Result<Report, String> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {name}: {error}"))?;
    let report: Report =
        serde_json::from_str(&text).map_err(|error| format!("{name} is not a report: {error}"))?;
    if report.schema != SCHEMA {
        return Err(format!("{name} has schema {}; this program knows {SCHEMA}", report.schema));
    }
    Ok(report)
}

/// # Errors
/// The file cannot be written.
pub fn csv(report: &Report, path: &Path) -> std::io::Result<()> {
    let mut text = String::from("t_ns,ok,failed,p50_ns,p99_ns,max_ns\n");
    for second in &report.intervals {
        text.push_str(&format!(
            "{},{},{},{},{},{}\n",
            second.t_ns, second.ok, second.failed, second.p50, second.p99, second.max
        ));
    }
    std::fs::write(path, text)
}

/// One histogram a second (nanoseconds), in the format of the `HdrHistogram` libraries.
///
/// # Errors
/// The file cannot be written.
pub fn hdr_log(report: &Report, parts: &[Part], path: &Path) -> std::io::Result<()> {
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    let mut serializer = V2DeflateSerializer::new();
    let other = std::io::Error::other::<String>;
    {
        let mut log = IntervalLogWriterBuilder::new()
            .add_comment(&format!("meshkv-stress {}, started {}", report.tool.version, report.started))
            .add_comment(&format!("{} time, nanoseconds", report.latency.primary_name()))
            // The maximum of a line is told in milliseconds.
            .with_max_value_divisor(1e6)
            .begin_log_with(&mut file, &mut serializer)?;
        let mut seconds = report.intervals.iter();
        for second in parts.iter().flat_map(|part| &part.outcome.seconds) {
            let at = seconds.next().map_or(0, |interval| interval.t_ns);
            log.write_histogram(&second.latency(), Duration::from_nanos(at), Duration::from_secs(1), None)
                .map_err(|error| other(format!("{error:?}")))?;
        }
    }
    file.flush()
}
