//! What a machine's own files must say: its name, how the name resolves, who resolves others, its machine id.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use super::InitError;
use super::cmdline::BootConfig;
use crate::identity;

/// Sets the host name and writes the files.
pub fn write(config: &BootConfig) -> Result<(), InitError> {
    std::fs::create_dir_all("/etc").map_err(|source| InitError::Write { path: "/etc", source })?;
    identity::set_hostname(&config.id)?;
    identity::put(Path::new("/etc/resolv.conf"), &resolv_conf(config.dns))?;
    if std::fs::read_to_string("/etc/machine-id").map_or(true, |id| id.trim().is_empty()) {
        let id = machine_id().map_err(|source| InitError::Write { path: "/etc/machine-id", source })?;
        identity::set_machine_id(&id)?;
    }
    Ok(())
}

fn resolv_conf(dns: Ipv4Addr) -> String {
    format!("nameserver {dns}\n")
}

/// 32 hex digits, new for every machine whose template has none (machine-id(5)).
fn machine_id() -> io::Result<String> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(uuid.trim().replace('-', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_is_the_hosts() {
        assert_eq!(resolv_conf(Ipv4Addr::new(192, 0, 2, 1)), "nameserver 192.0.2.1\n");
    }

    #[test]
    fn every_machine_id_is_new() {
        let id = machine_id().unwrap();
        assert!(identity::is_machine_id(&id), "{id}");
        assert_ne!(id, machine_id().unwrap());
    }
}
