//! The engine's list of containers and its version: any bytes become a list, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshkv::balancer::core::api::{Location, choose_version};
use meshkv::balancer::core::containers::{Group, find_group, parse_list};
use meshkv::limits::BACKENDS_MAX;

fuzz_target!(|data: &[u8]| {
    let _ = choose_version(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Location::parse(text);
    }
    let Some(list) = parse_list(data) else { return };
    let own = [[172, 18, 0, 9].into()];
    for (project, network) in [(None, None), (Some("p".to_owned()), Some("default".to_owned()))] {
        let group = Group { name: "db".to_owned(), port: 80, project, network };
        let found = find_group(&list, &group, &own, 80, Some(1000));
        assert!(found.listed.len() <= BACKENDS_MAX);
        assert!(!found.listed.is_empty() || found.remark.is_some(), "no backends, and nobody is told why");
        assert_eq!(found, find_group(&list, &group, &own, 80, Some(1000)));
    }
});
