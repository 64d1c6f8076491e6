//! The stub's network.

use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};

/// What a stub does with a vif besides receiving.
pub(super) const NETWORK: Story = Story {
    name: "stub-network",
    proves: "a stub takes its address from DHCP, has a link-local one too, and answers at both",
    options: Options::default,
    tell: network,
};

/// Dom0's side of the relay's bridge, and a DHCP server on it.
const SET_UP: &str = "ip link show xenstub0 >/dev/null 2>&1 || brctl addbr xenstub0
echo 0 >/sys/class/net/xenstub0/bridge/forward_delay
ip link set xenstub0 up && ip addr add 10.81.0.1/24 dev xenstub0
printf 'start 10.81.0.50\\nend 10.81.0.59\\ninterface xenstub0\\nlease_file /run/leases\\nopt subnet 255.255.255.0\\n' >/run/udhcpd.conf
touch /run/leases && udhcpd /run/udhcpd.conf";

/// A stub of nobody's, with a vif.
const STUB: &str = "rm -f /var/log/xen/guest-lonely.log
xl create -q /etc/xen/stubdom/stubdom.cfg 'name=\"lonely\"' 'vif=[\"bridge=xenstub0\"]'";

fn network(stage: &Stage) -> Telling {
    stage.sh(SET_UP)?;
    stage.sh(STUB)?;
    let dhcp = await_log(stage, "lonely", "by DHCP")?;
    let address = dhcp.split_ascii_whitespace().find(|word| word.starts_with("10.81.0.5"));
    let address = address.and_then(|address| address.split('/').next()).unwrap_or_default();
    ensure(!address.is_empty(), || format!("no address of the DHCP server's in `{dhcp}`"))?;
    stage.sh(&format!("ping -c 2 -W 5 {address}"))?;
    let local = await_log(stage, "lonely", "fe80::")?;
    let local = local.split([' ', ',']).find(|word| word.starts_with("fe80::")).unwrap_or_default();
    stage.sh(&format!("ping6 -c 2 -W 5 -I xenstub0 {local}"))?;
    stage.say(format!("answers at {address} (DHCP) and {local}"));
    stage.sh("xl destroy lonely; killall udhcpd; ip addr del 10.81.0.1/24 dev xenstub0")?;
    stage.expect_alone()
}

/// The line of a stub's console with these words, once it is there.
fn await_log(stage: &Stage, stub: &str, words: &str) -> Telling<String> {
    stage.sh(&format!(
        "for i in $(seq 100); do tr -d '\\r' </var/log/xen/guest-{stub}.log | grep '{words}' && exit 0; sleep 0.2; done; \
         cat /var/log/xen/guest-{stub}.log; exit 1"
    ))
}
