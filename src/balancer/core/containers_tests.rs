//! Goal: the right containers at the right addresses, or a reason. Method: lists as engines write them.

use super::*;
use serde_json::json;

fn container(id: &str, service: &str, project: &str, networks: &[(&str, &str)]) -> Value {
    let mut map = serde_json::Map::new();
    for (name, address) in networks {
        map.insert((*name).to_owned(), json!({"IPAddress": address, "IPPrefixLen": 16}));
    }
    json!({"Id": id, "Names": [format!("/{project}_{service}_{id}")], "State": "running",
        "Status": "Up 5 seconds (healthy)", "NetworkSettings": {"Networks": map},
        "Labels": {"com.docker.compose.service": service, "com.docker.compose.project": project}})
}

fn group() -> Group {
    Group { name: "db".into(), port: 80, project: None, network: None }
}

fn find(values: &[Value], group: &Group, own: &[&str]) -> Found {
    let list = parse_list(json!(values).to_string().as_bytes()).expect("a list");
    let own: Vec<IpAddr> = own.iter().map(|text| text.parse().expect("an address")).collect();
    find_group(&list, group, &own, 8080, Some(1000))
}

fn places(found: &Found) -> Vec<String> {
    found.listed.iter().map(|one| one.place.as_ref().map_or_else(Clone::clone, ToString::to_string)).collect()
}

#[test]
fn the_address_is_the_one_in_the_network_that_we_share() {
    let list = [
        container("a", "db", "p", &[("aaa_other", "10.9.0.2"), ("p_default", "172.18.0.2")]),
        container("b", "db", "p", &[("aaa_other", "10.9.0.3")]),
        container("c", "web", "p", &[("p_default", "172.18.0.4")]),
        container("me", "proxy", "p", &[("p_default", "172.18.0.5")]),
    ];
    let found = find(&list, &group(), &["172.18.0.5"]);
    assert_eq!(
        places(&found),
        ["172.18.0.2:80", "it shares no network with this balancer; its networks: aaa_other"]
    );
    let asked = Group { network: Some("other".into()), ..group() };
    assert!(places(&find(&list, &asked, &["172.18.0.5"]))[0].contains("not in network"));
    let asked = Group { network: Some("aaa_other".into()), ..group() };
    assert_eq!(places(&find(&list, &asked, &[])), ["10.9.0.2:80", "10.9.0.3:80"]);
    // As the compose file has it.
    let asked = Group { network: Some("default".into()), ..group() };
    assert_eq!(places(&find(&list, &asked, &[]))[0], "172.18.0.2:80");
}

#[test]
fn the_project_is_the_one_asked_for_else_ours_else_the_only_one() {
    let two = [
        container("a", "db", "one", &[("n", "172.18.0.2")]),
        container("b", "db", "two", &[("n", "172.18.0.3")]),
    ];
    let found = find(&two, &group(), &["172.18.0.9"]);
    assert!(found.listed.is_empty());
    assert!(
        found.remark.is_some_and(|remark| remark.contains("GROUP_PROJECT") && remark.contains("one, two"))
    );
    let asked = Group { project: Some("two".into()), ..group() };
    assert_eq!(places(&find(&two, &asked, &["172.18.0.9"])), ["172.18.0.3:80"]);
    let mut with_us = two.to_vec();
    with_us.push(container("me", "proxy", "one", &[("n", "172.18.0.9")]));
    assert_eq!(places(&find(&with_us, &group(), &["172.18.0.9"])), ["172.18.0.2:80"]);
    assert_eq!(places(&find(&two[1..], &group(), &["172.18.0.9"])), ["172.18.0.3:80"]);
}

#[test]
fn a_group_that_does_not_exist_is_said_so() {
    let found = find(&[container("a", "web", "p", &[])], &group(), &[]);
    assert_eq!(found.remark.as_deref(), Some("no container of service \"db\" runs; there are: web"));
    assert!(find(&[], &group(), &[]).remark.is_some_and(|remark| remark.contains("nor any other")));
}

#[test]
fn one_broken_container_does_not_hide_the_others() {
    let good = container("a", "db", "p", &[("n", "172.18.0.2")]);
    let mut no_labels = good.clone();
    no_labels["Labels"] = Value::Null;
    let mut bad_address = container("b", "db", "p", &[("n", "not an address")]);
    bad_address["Names"] = Value::Null;
    let mut paused = container("c", "db", "p", &[("n", "172.18.0.3")]);
    paused["State"] = json!("paused");
    let mut gone = container("d", "db", "p", &[("n", "172.18.0.4")]);
    gone["State"] = json!("exited");
    let list = [json!(1), json!({}), json!({"Id": "x"}), no_labels, good, bad_address, paused, gone];
    let found = find(&list, &group(), &["172.18.0.9"]);
    assert_eq!(places(&found)[0], "172.18.0.2:80");
    assert!(places(&found)[1].contains("its networks: none"));
    assert_eq!(found.listed[2].condition, Condition::Paused);
    assert_eq!(found.listed.len(), 3);
    assert_eq!(found.listed[0].started, Some(995));
    assert_eq!(found.listed[0].health, Health::Healthy);
}

#[test]
fn we_are_never_our_own_backend() {
    let list = [
        container("me", "db", "p", &[("n", "172.18.0.2")]),
        container("b", "db", "p", &[("n", "172.18.0.3")]),
    ];
    let same_port = Group { port: 8080, ..group() };
    assert_eq!(
        places(&find(&list, &same_port, &["172.18.0.2"])),
        ["it is this balancer itself", "172.18.0.3:8080"]
    );
    // Another port on our own address is another program.
    assert_eq!(places(&find(&list, &group(), &["172.18.0.2"]))[0], "172.18.0.2:80");
}

#[test]
fn uptimes_are_exact_to_the_second_or_unknown() {
    for (status, seconds) in [
        ("Up 5 seconds", Some(5)),
        ("Up 1 second (health: starting)", Some(1)),
        ("Up Less than a second", Some(0)),
        ("Up About a minute", None),
        ("Up 3 minutes (Paused)", None),
        ("Exited (0) 3 seconds ago", None),
        ("", None),
    ] {
        assert_eq!(up_seconds(status), seconds, "{status}");
    }
}

#[test]
fn networks_hold_the_addresses_of_their_prefix() {
    let network =
        |address: &str, prefix| Network { name: String::new(), address: address.parse().unwrap(), prefix };
    for (net, address, holds) in [
        (network("172.18.0.2", 16), "172.18.255.1", true),
        (network("172.18.0.2", 16), "172.19.0.1", false),
        (network("172.18.0.2", 32), "172.18.0.2", true),
        (network("172.18.0.2", 32), "172.18.0.3", false),
        (network("172.18.0.2", 0), "172.18.0.2", false),
        (network("fd00::2", 64), "fd00::ffff", true),
        (network("fd00::2", 64), "fd00:1::1", false),
        (network("fd00::2", 64), "172.18.0.2", false),
    ] {
        assert_eq!(net.contains(address.parse().unwrap()), holds, "{net:?} {address}");
    }
}
