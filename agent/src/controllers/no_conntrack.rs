//! Keeps pods' packets out of the kernel's connection tracking (`installNoConntrackIptablesRules`): what the programs forward
//! never gets there, what the stack forwards would fill its table for nothing.
//!
//! The rules are nftables'; the value has the name that Cilium's chart gave it.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use podwire_api::values::Values;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::health::Health;

/// Name of this part in `podwire status`.
const PART: &str = "no-conntrack";

/// The table: ours alone.
pub const TABLE: &str = "podwire_notrack";

/// Pause between two runs: whatever somebody changed in the table is put right then.
const EVERY: Duration = Duration::from_secs(30);

/// The table as nft takes it, in the place of the one that is there.
///
/// The chains stand before connection tracking (`raw`, priority -300).
pub fn ruleset(cidrs: &[Ipv4Net]) -> String {
    let mut text = removal();
    let list = cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let _ = writeln!(text, "table ip {TABLE} {{");
    for (chain, hook) in [("prerouting", "prerouting"), ("output", "output")] {
        let _ = writeln!(
            text,
            "  chain {chain} {{\n    type filter hook {hook} priority raw; policy accept;\n    \
             ip saddr {{ {list} }} notrack\n    ip daddr {{ {list} }} notrack\n  }}"
        );
    }
    text.push_str("}\n");
    text
}

/// Takes the table away, whether it is there or not: to add what there is already is nothing, to delete what there is not an
/// error.
fn removal() -> String {
    format!("add table ip {TABLE}\ndelete table ip {TABLE}\n")
}

/// Has nft carry out a text, whole or not at all.
///
/// # Errors
/// The cause and the mend.
pub async fn apply(text: &str) -> Result<(), String> {
    let child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            "nft is not installed; install nftables, or write installNoConntrackIptablesRules=false"
                .to_owned()
        }
        _ => format!("nft does not start: {error}"),
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // nft that ends early says why itself.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(|error| format!("nft: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("nft: {}", said.lines().next().unwrap_or("it failed and said nothing").trim()))
}

/// Runs for ever, if the rules are wanted; else takes away what an agent before has left.
pub async fn run(values: Values, health: Arc<Health>) {
    if !values.install_no_conntrack_iptables_rules {
        // Without nft there is no table of ours either.
        if let Err(cause) = apply(&removal()).await {
            tracing::debug!("{PART}: {cause}");
        }
        return;
    }
    let text = ruleset(&values.ipv4_native_routing_cidr);
    loop {
        match apply(&text).await {
            Ok(()) => health.ok(PART, format!("table ip {TABLE}")),
            Err(cause) => health.fail(PART, cause),
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_cidr_both_ways() {
        let text = ruleset(&["10.244.0.0/16".parse().unwrap(), "172.20.0.0/16".parse().unwrap()]);
        assert!(
            text.starts_with("add table ip podwire_notrack\ndelete table ip podwire_notrack\n"),
            "{text}"
        );
        for end in ["saddr", "daddr"] {
            let rule = format!("ip {end} {{ 10.244.0.0/16, 172.20.0.0/16 }} notrack");
            assert_eq!(text.matches(&rule).count(), 2, "{text}");
        }
    }
}
