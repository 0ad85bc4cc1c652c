//! The engine's list of containers, and which of them are the group: by labels, never by names.

use super::pool::{Condition, Health, Listed};
use crate::limits::BACKENDS_MAX;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

const SERVICE: &str = "com.docker.compose.service";
const PROJECT: &str = "com.docker.compose.project";

/// What the balancer was told about the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The compose service.
    pub name: String,
    /// The port that its containers listen on.
    pub port: u16,
    /// The compose project; `None`: find out.
    pub project: Option<String>,
    /// The network to reach them by; `None`: find out.
    pub network: Option<String>,
}

/// One container as the engine lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    id: String,
    name: String,
    service: String,
    project: String,
    condition: Condition,
    health: Health,
    /// Seconds since its start, where the engine says it to the second.
    up_seconds: Option<u64>,
    networks: Vec<Network>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Network {
    name: String,
    address: IpAddr,
    prefix: u8,
}

/// The members of the group, and what a person should know about how they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub listed: Vec<Listed>,
    /// Why there are none, or not all.
    pub remark: Option<String>,
}

/// Reads the body of `/containers/json`. A container that is not understood is left out: it must not keep
/// the others from being found. `None` if the whole is not a list.
#[must_use]
pub fn parse_list(body: &[u8]) -> Option<Vec<Container>> {
    let value: Value = serde_json::from_slice(body).ok()?;
    Some(value.as_array()?.iter().filter_map(parse_container).collect())
}

fn parse_container(value: &Value) -> Option<Container> {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let id = value["Id"].as_str().filter(|id| !id.is_empty())?.to_owned();
    let labels = &value["Labels"];
    let condition = match value["State"].as_str()? {
        "running" => Condition::Running,
        "paused" => Condition::Paused,
        // Created, restarting, exited, dead: nothing to connect to.
        _ => return None,
    };
    let status = value["Status"].as_str().unwrap_or("");
    let health = match status {
        _ if status.contains("(healthy)") => Health::Healthy,
        _ if status.contains("(unhealthy)") => Health::Unhealthy,
        _ if status.contains("(health: starting)") => Health::Starting,
        _ => Health::None,
    };
    let mut networks = Vec::new();
    for (name, network) in value["NetworkSettings"]["Networks"].as_object().into_iter().flatten() {
        for (address, prefix) in [("IPAddress", "IPPrefixLen"), ("GlobalIPv6Address", "GlobalIPv6PrefixLen")]
        {
            let address = network[address].as_str().and_then(|text| text.parse::<IpAddr>().ok());
            if let Some(address) = address.filter(|address| !address.is_unspecified()) {
                let most = if address.is_ipv4() { 32 } else { 128 };
                let prefix = network[prefix].as_u64().unwrap_or(most).min(most) as u8;
                networks.push(Network { name: name.clone(), address, prefix });
            }
        }
    }
    let name = value["Names"][0].as_str().unwrap_or("").trim_start_matches('/');
    let name = if name.is_empty() { id.chars().take(12).collect() } else { name.to_owned() };
    let (service, project) = (text(&labels[SERVICE]), text(&labels[PROJECT]));
    let up_seconds = up_seconds(status);
    Some(Container { id, name, service, project, condition, health, up_seconds, networks })
}

/// `Up 5 seconds (healthy)`: the engine is exact below a minute only.
fn up_seconds(status: &str) -> Option<u64> {
    let rest = status.strip_prefix("Up ")?;
    if rest.starts_with("Less than a second") {
        return Some(0);
    }
    let (number, unit) = rest.split_once(' ')?;
    unit.starts_with("second").then(|| number.parse().ok()).flatten()
}

/// The group's members among `containers`. `own`: the addresses of this process's interfaces; `ourselves`:
/// the port that we listen on; `time`: when the list was made, in seconds by the engine's clock.
#[must_use]
pub fn find_group(
    containers: &[Container],
    group: &Group,
    own: &[IpAddr],
    our_port: u16,
    time: Option<u64>,
) -> Found {
    let of_service: Vec<&Container> = containers.iter().filter(|c| c.service == group.name).collect();
    if of_service.is_empty() {
        return Found { listed: Vec::new(), remark: Some(no_such_service(containers, group)) };
    }
    let project = match project_of(containers, &of_service, group, own) {
        Ok(project) => project,
        Err(remark) => return Found { listed: Vec::new(), remark: Some(remark) },
    };
    let mut listed = Vec::new();
    let mut remark = None;
    for container in of_service.into_iter().filter(|container| container.project == project) {
        if listed.len() >= BACKENDS_MAX {
            remark = Some(format!("the group has more than {BACKENDS_MAX} containers: the rest is left out"));
            break;
        }
        let is_ours = container.networks.iter().any(|network| own.contains(&network.address));
        let place = if is_ours && group.port == our_port {
            Err("it is this balancer itself".to_owned())
        } else {
            address_of(container, group, own).map(|address| SocketAddr::new(address, group.port))
        };
        let started = time.zip(container.up_seconds).map(|(time, up)| time.saturating_sub(up));
        listed.push(Listed {
            id: container.id.clone(),
            name: container.name.clone(),
            place,
            condition: container.condition,
            health: container.health,
            started,
        });
    }
    if listed.is_empty() {
        remark = Some(format!("no container of service {:?} runs in project {project:?}", group.name));
    }
    Found { listed, remark }
}

fn no_such_service(containers: &[Container], group: &Group) -> String {
    let seen: BTreeSet<&str> =
        containers.iter().map(|c| c.service.as_str()).filter(|s| !s.is_empty()).collect();
    let seen: Vec<&str> = seen.into_iter().take(20).collect();
    let name = &group.name;
    if seen.is_empty() {
        format!("no container of service {name:?} runs, nor any other of a compose file")
    } else {
        format!("no container of service {name:?} runs; there are: {}", seen.join(", "))
    }
}

/// Asked for, else ours, else the only one. Several: none, since connections would go astray.
fn project_of(
    containers: &[Container],
    of_service: &[&Container],
    group: &Group,
    own: &[IpAddr],
) -> Result<String, String> {
    if let Some(project) = &group.project {
        return Ok(project.clone());
    }
    let is_ours = |c: &&Container| c.networks.iter().any(|network| own.contains(&network.address));
    if let Some(ours) = containers.iter().find(is_ours).filter(|ours| !ours.project.is_empty()) {
        return Ok(ours.project.clone());
    }
    let projects: BTreeSet<&str> = of_service.iter().map(|c| c.project.as_str()).collect();
    let projects: Vec<&str> = projects.into_iter().collect();
    match projects[..] {
        [only] => Ok(only.to_owned()),
        _ => Err(format!(
            "service {:?} runs in several projects ({}): set GROUP_PROJECT to one of them",
            group.name,
            projects.join(", ")
        )),
    }
}

/// The address in the network that was asked for, else in one that we are in as well. IPv4 goes first, and
/// among several networks the first by name, so that the choice does not change from list to list.
fn address_of(container: &Container, group: &Group, own: &[IpAddr]) -> Result<IpAddr, String> {
    let mut networks: Vec<&Network> = container.networks.iter().collect();
    networks.sort_by(|a, b| (a.address.is_ipv6(), &a.name).cmp(&(b.address.is_ipv6(), &b.name)));
    let names = || {
        let names: Vec<&str> = networks.iter().map(|network| network.name.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    if let Some(wanted) = &group.network {
        // Compose puts the project before the name that the file has.
        let prefixed = format!("{}_{wanted}", container.project);
        let found =
            networks.iter().find(|n| n.name == *wanted).or(networks.iter().find(|n| n.name == prefixed));
        return found
            .map(|network| network.address)
            .ok_or_else(|| format!("it is not in network {wanted:?}; its networks: {}", names()));
    }
    let shared = networks.iter().find(|network| own.iter().any(|address| network.contains(*address)));
    shared
        .map(|network| network.address)
        .ok_or_else(|| format!("it shares no network with this balancer; its networks: {}", names()))
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        let (ours, theirs, width) = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
            _ => return false,
        };
        // A container without a real prefix (its own address alone) shares a network with nobody.
        let host_bits = width - u32::from(self.prefix);
        self.prefix > 0 && (ours ^ theirs).checked_shr(host_bits).unwrap_or(0) == 0
    }
}

#[cfg(test)]
#[path = "containers_tests.rs"]
mod tests;
