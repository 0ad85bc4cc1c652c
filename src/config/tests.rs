//! Goal: each rule of [`NodeConfig::validate`] refuses what breaks it and nothing else, and the text forms
//! (acks, sizes, secrets) take exactly what is documented. Method: tables.

use super::*;

fn reason_of(change: impl FnOnce(&mut NodeConfig)) -> Option<(&'static str, String)> {
    let mut config = NodeConfig::default();
    change(&mut config);
    config.validate().err().map(|error| (error.field, error.reason))
}

fn field_of(change: impl FnOnce(&mut NodeConfig)) -> Option<&'static str> {
    reason_of(change).map(|(field, _)| field)
}

#[test]
fn the_default_is_valid_and_as_documented() {
    let config = NodeConfig::default();
    assert_eq!(config.validate(), Ok(()));
    assert_eq!((config.host.to_string().as_str(), config.port), ("127.0.0.1", 8080));
    assert_eq!((config.max_key_chars, config.max_value_chars), (64, 256));
    assert_eq!(config.acks, AckLevel::All);
    assert!(config.join.is_empty() && config.peer_port.is_none() && config.secret.is_none());
    if let Some(usable) = system::Memory::detect().usable() {
        assert!(config.max_memory_bytes <= usable / 10 * 8 + 100, "{}", config.max_memory_bytes);
        assert!(config.max_memory_bytes >= usable / 10 * 8 - 1000, "{}", config.max_memory_bytes);
    }
}

#[test]
fn every_rule_names_its_field() {
    assert_eq!(field_of(|c| c.name = String::new()), Some("name"));
    assert_eq!(field_of(|c| c.name = "n".repeat(256)), Some("name"));
    assert_eq!(field_of(|c| c.name = "n".repeat(255)), None);
    assert_eq!(field_of(|c| c.name = "a b".into()), Some("name"));
    assert_eq!(field_of(|c| c.name = "a\nb".into()), Some("name"));
    assert_eq!(field_of(|c| c.peer_port = Some(c.port)), Some("peer_port"));
    assert_eq!(field_of(|c| (c.port, c.peer_port) = (0, Some(0))), None);
    assert_eq!(field_of(|c| c.workers = 0), Some("workers"));
    assert_eq!(field_of(|c| c.workers = WORKERS_MAX + 1), Some("workers"));
    assert_eq!(field_of(|c| c.acks = AckLevel::Count(0)), Some("acks"));
    assert_eq!(field_of(|c| c.max_memory_bytes = MEMORY_BYTES_MIN - 1), Some("max_memory"));
    assert_eq!(field_of(|c| c.max_memory_bytes = MEMORY_BYTES_MIN), None);
    assert_eq!(field_of(|c| c.unix = Some(PathBuf::new())), Some("unix"));
    assert_eq!(field_of(|c| c.unix = Some("s".repeat(101).into())), Some("unix"));
    assert_eq!(field_of(|c| c.unix = Some("s".repeat(100).into())), None);
    assert_eq!(field_of(|c| c.max_key_chars = 0), Some("max_key_length"));
    assert_eq!(field_of(|c| c.max_key_chars = KEY_CHARS_MAX + 1), Some("max_key_length"));
    assert_eq!(field_of(|c| c.max_value_chars = 0), Some("max_value_length"));
    assert_eq!(field_of(|c| c.max_value_chars = VALUE_CHARS_MAX + 1), Some("max_value_length"));
    assert_eq!(field_of(|c| c.max_connections = 0), Some("max_connections"));
    assert_eq!(field_of(|c| c.max_connections = usize::MAX), Some("max_connections"));
    assert_eq!(field_of(|c| c.stripes = 1000), Some("stripes"));
    assert_eq!(field_of(|c| c.stripes = 0), Some("stripes"));
    assert_eq!(field_of(|c| c.stripes = 1), None);
}

#[test]
fn join_takes_http_urls_only() {
    let join = |url: &str| reason_of(|c| c.join = vec!["http://ok".into(), url.into()]);
    for good in
        ["http://proxy", "http://proxy:80/", "http://10.0.0.5:8080", "http://[::1]:8080", "http://[::1]"]
    {
        assert_eq!(join(good), None, "{good}");
    }
    for bad in [
        "",
        "proxy:80",
        "https://proxy",
        "http://",
        "http://:80",
        "http://a:0",
        "http://a:65536",
        "http://a:x",
        "http://a/ping",
        "http://a?x",
        "http://a b",
        "http://[::1",
        "http://[::1]80",
        "http://[zz]",
        "http://a:",
    ] {
        assert_eq!(join(bad).map(|(field, _)| field), Some("join"), "{bad}");
    }
    let (_, reason) = join("http://user:hunter2@proxy").expect("refused");
    assert!(!reason.contains("hunter2"), "{reason}");
    let (_, reason) = join("https://proxy").expect("refused");
    assert!(reason.contains("only http"), "{reason}");
}

#[test]
fn advertise_takes_a_host_with_or_without_a_port() {
    let advertise = |address: &str| field_of(|c| c.advertise = Some(address.into()));
    for good in ["n1", "n1:7373", "10.0.0.5", "10.0.0.5:1", "::1", "[::1]:7373", "fe80::1"] {
        assert_eq!(advertise(good), None, "{good}");
    }
    for bad in ["", ":7373", "n1:0", "http://n1", "0.0.0.0", "::", "[::]", "n 1", "n1:x", "a/b"] {
        assert_eq!(advertise(bad), Some("advertise"), "{bad}");
    }
}

#[test]
fn an_origin_cannot_break_out_of_its_header() {
    let origin = |text: &str| field_of(|c| c.cors_origin = Some(text.into()));
    for good in
        ["*", "https://example.com", "http://localhost:3000", "http://[::1]:80", "chrome-extension://abc"]
    {
        assert_eq!(origin(good), None, "{good}");
    }
    for bad in
        ["", "example.com", "https://", "://a", "https://a/", "https://a b", "https://a\r\nX: y", "https://ä"]
    {
        assert_eq!(origin(bad), Some("cors_origin"), "{bad:?}");
    }
}

#[test]
fn connections_leave_room_for_the_nodes_own_descriptors() {
    assert_eq!(connections_for(1024, 2), 1024 - 64 - 64);
    assert_eq!(connections_for(100, 2), 50);
    assert_eq!(connections_for(0, 1), 1);
    assert_eq!(connections_for(u64::MAX, usize::MAX), usize::MAX - usize::MAX / 2);
    let config = NodeConfig { workers: 2, max_connections: 896, ..NodeConfig::default() };
    assert_eq!(config.check_connections(1024), Ok(()));
    let error = config.check_connections(1023).expect_err("one too many");
    assert!(error.reason.contains("1023") && error.reason.contains("895"), "{error}");
}

#[test]
fn ack_levels_read_and_write_the_same_words() {
    for (text, level) in [
        ("local", AckLevel::Local),
        ("quorum", AckLevel::Quorum),
        ("all", AckLevel::All),
        ("1", AckLevel::Count(1)),
        ("4294967295", AckLevel::Count(u32::MAX)),
    ] {
        assert_eq!(text.parse(), Ok(level));
        assert_eq!(level.to_string(), text);
    }
    for bad in ["", "0", "-1", "+1", "ALL", "1.5", "4294967296", " 1", "1x"] {
        assert_eq!(bad.parse::<AckLevel>(), Err(NotAnAckLevel), "{bad:?}");
    }
}

#[test]
fn sizes_are_read_as_people_write_them() {
    for (text, bytes) in [
        ("1048576", 1 << 20),
        ("512M", 512 << 20),
        ("512 MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("2g", 2 << 30),
        ("2GB", 2_000_000_000),
        ("1.5G", 3 << 29),
        ("64k", 64 << 10),
        ("64kB", 64_000),
        ("1T", 1 << 40),
        ("7B", 7),
        ("0.5k", 512),
    ] {
        assert_eq!(text.parse(), Ok(MemorySize::Bytes(bytes)), "{text}");
    }
    assert_eq!("80%".parse(), Ok(MemorySize::Percent(80)));
    assert_eq!("100 %".parse(), Ok(MemorySize::Percent(100)));
    for bad in [
        "",
        "M",
        "%",
        "0%",
        "101%",
        "1.5%",
        "-1",
        "1.",
        ".5G",
        "1.5",
        "1..5G",
        "5X",
        "G5",
        "1e9",
        "18446744073709551616",
        "99999999999T",
        "1.1234567G",
        "5 %%",
        "+5M",
    ] {
        assert_eq!(bad.parse::<MemorySize>(), Err(NotAMemorySize), "{bad:?}");
    }
}

#[test]
fn a_percentage_is_of_the_smaller_memory() {
    let memory = system::Memory { machine: Some(1000), cgroup: Some(500) };
    assert_eq!(MemorySize::Percent(80).resolve(memory), 400);
    assert_eq!(MemorySize::Bytes(900).resolve(memory), 900);
    assert_eq!(MemorySize::Percent(80).resolve(system::Memory::default()), MEMORY_BYTES_FALLBACK);
    let huge = system::Memory { machine: Some(u64::MAX), cgroup: None };
    assert!(MemorySize::Percent(100).resolve(huge) > u64::MAX - 100);
}

#[test]
fn a_secret_shows_nothing_and_compares_by_content() {
    let text = b"  0123456789abcdef0123456789abcdef\n";
    let secret = Secret::new(text).expect("long enough");
    assert_eq!(secret.expose(), b"0123456789abcdef0123456789abcdef");
    assert_eq!(secret, Secret::new(b"0123456789abcdef0123456789abcdef").expect("long enough"));
    assert_ne!(secret, Secret::new(b"0123456789abcdef0123456789abcdeX").expect("long enough"));
    assert_ne!(secret, Secret::new(b"X123456789abcdef0123456789abcdef").expect("long enough"));
    assert_ne!(secret, Secret::new(b"0123456789abcdef0123456789abcdef0").expect("long enough"));
    let config = NodeConfig { secret: Some(secret), ..NodeConfig::default() };
    assert!(!format!("{config:?} {config:#?}").contains("0123456789"));
    let two = b"0123456789abcdef0123456789abcdef\n\n 0123456789abcdef0123456789abcdeX \n";
    let two = Secret::new(two).expect("two for a change");
    assert_eq!(two.expose(), b"0123456789abcdef0123456789abcdef\n0123456789abcdef0123456789abcdeX");
    let (short, three) = (b"abc\n0123456789abcdef0123456789abcdef0123", [&[b'x'; 32][..]; 3].join(&b'\n'));
    for bad in [&b""[..], b"   \n", b"0123456789abcdef0123456789abcde", &[b'x'; 4097], short, &three] {
        let error = Secret::new(bad).expect_err("refused");
        assert!(!error.reason.contains("0123456789"), "{error}");
    }
}
