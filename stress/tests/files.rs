//! Goal: what is written can be read by others. Method: the real binary's files against the schema, against the
//! report itself, and read back by `show`.

mod support;

use support::{Fixture, n, report, right, run, serve, stress, temporary};

fn schema() -> jsonschema::Validator {
    let text = include_str!("../report.schema.json");
    jsonschema::draft202012::new(&serde_json::from_str(text).expect("JSON")).expect("a schema")
}

fn check(report: &serde_json::Value) {
    let wrong: Vec<String> =
        schema().iter_errors(report).map(|error| format!("{}: {error}", error.instance_path)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn fixture() -> Fixture {
    serve(|n, request| {
        let refused = "HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 0\r\n\r\n";
        Some(if n % 100 == 7 { refused.to_owned() } else { right(request) })
    })
}

#[test]
fn every_kind_of_report_follows_the_schema() {
    let fixture = fixture();
    for arguments in [
        &["-n", "1000", "--mix", "set=1,get=2,is=1", "--value-size", "7", "--verify", "status"][..],
        &["-d", "1.5", "--warmup", "0", "--rate", "500", "--key-dist", "zipf:0.9"],
        &["-n", "100", "--template", "/x?{n}", "--verify", "none"],
        &["load", "-n", "500"],
        &["verify", "-n", "500"],
    ] {
        let (_, text, report) = report(&fixture.url, arguments);
        check(&report);
        support::balanced(&report);
        assert!(report["counts"]["failed"].as_u64() > Some(0), "{text}");
        assert_eq!(report["latency"].get("response").is_some(), arguments.contains(&"--rate"));
        assert_eq!(report["config"]["connections"], 8);
    }
}

/// The schema is strict: a report with anything else, or with something missing, is refused.
#[test]
fn the_schema_refuses_what_is_not_a_report() {
    let fixture = fixture();
    let (_, _, report) = report(&fixture.url, &["-n", "500"]);
    check(&report);
    let validator = schema();
    let object = report.as_object().expect("an object");
    for name in object.keys() {
        let mut less = report.clone();
        less.as_object_mut().expect("an object").remove(name);
        assert!(!validator.is_valid(&less), "without {name}");
    }
    for path in ["", "/config", "/counts", "/counts/errors", "/client", "/latency/service/all", "/runs/0"] {
        let mut more = report.clone();
        let place = more.pointer_mut(path).and_then(|place| place.as_object_mut()).expect("an object");
        place.insert("surprise".to_owned(), 1.into());
        assert!(!validator.is_valid(&more), "more in {path}");
    }
}

#[test]
fn show_prints_the_report_that_was_written() {
    let fixture = fixture();
    let json = temporary("json");
    let (code, text) = stress(&fixture.url, &["-n", "2000", "--json", json.path()]);
    let (shown_code, shown) = run(&["show", json.path()]);
    assert_eq!((code, shown_code), (Some(1), Some(1)));
    let written = text.lines().filter(|line| !line.starts_with("written")).collect::<Vec<_>>().join("\n");
    assert_eq!(shown.trim_end(), written);
    assert!(
        run(&["show", json.path(), "--color", "always"]).1.contains("\x1b[32mVALID"),
        "colour when asked for"
    );
    std::fs::write(&json.0, "{}").expect("written");
    let (code, text) = run(&["show", json.path()]);
    assert!(code == Some(2) && text.contains("is not a report"), "{text}");
}

/// The seconds as lines, and as histograms that the libraries of `HdrHistogram` read.
#[test]
fn seconds_are_written_as_csv_and_as_an_hdr_log() {
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    let fixture = fixture();
    let (csv, log) = (temporary("csv"), temporary("hlog"));
    let arguments =
        ["-d", "2.5", "--warmup", "0", "--rate", "300", "--csv", csv.path(), "--hdr-log", log.path()];
    let (_, text, report) = report(&fixture.url, &arguments);
    let lines = std::fs::read_to_string(&csv.0).expect("written");
    let mut lines = lines.lines();
    assert_eq!(lines.next(), Some("t_ns,ok,failed,p50_ns,p99_ns,max_ns"));
    let intervals = report["intervals"].as_array().expect("a list");
    assert!(intervals.len() >= 3, "{text}");
    for (line, second) in lines.zip(intervals) {
        let columns = ["t_ns", "ok", "failed", "p50", "p99", "max"].map(|name| second[name].to_string());
        assert_eq!(line, columns.join(","));
    }
    let bytes = std::fs::read(&log.0).expect("written");
    let (mut deserializer, mut all, mut seconds) = (Deserializer::new(), None, 0);
    for entry in IntervalLogIterator::new(&bytes) {
        let LogEntry::Interval(interval) = entry.expect("a log") else { continue };
        let coded = interval.encoded_histogram();
        let packed = unbase64(coded);
        let histogram: hdrhistogram::Histogram<u64> =
            deserializer.deserialize(&mut packed.as_slice()).expect("a histogram");
        assert_eq!(interval.start_timestamp().as_secs(), seconds);
        assert_eq!(histogram.len(), n(&intervals[seconds as usize], "/ok"));
        seconds += 1;
        match &mut all {
            None => all = Some(histogram),
            Some(all) => all.add(&histogram).expect("same bounds"),
        }
    }
    let all = all.expect("seconds");
    assert_eq!(all.len(), n(&report, "/counts/ok"));
    assert_eq!(all.value_at_quantile(0.99), n(&report, "/latency/response/all/p99"), "merged without loss");
}

fn unbase64(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let sextets: Vec<u32> = text.bytes().filter(|c| *c != b'=').map(|c| u32::from(value(c))).collect();
    let mut out = Vec::new();
    for four in sextets.chunks(4) {
        let bits = four.iter().fold(0, |bits, sextet| bits << 6 | sextet) << (6 * (4 - four.len()));
        out.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    out
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_and_the_report_is_told_all_the_same() {
    let fixture = fixture();
    let (code, text) = stress(&fixture.url, &["-n", "100", "--json", "/nonexistent/report.json"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("cannot write /nonexistent/report.json") && text.contains("counts "), "{text}");
}
