//! The stub's network.

use super::restore::restore_paused;
use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};
use control::RELAY_ADDRESS;

/// What a stub does with a vif besides receiving.
pub(super) const NETWORK: Story = Story {
    name: "stub-network",
    proves: "a stub takes its address from DHCP, has a link-local one too, and answers at both, also when its vif went and \
             came back; xl shutdown ends it; who connects before stubctl without the token, or says nothing, is \
             dropped with a log line, and the restore succeeds",
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
    replug(stage, address)?;
    stage.sh("xl shutdown -w lonely && killall udhcpd")?;
    stage.say(await_log(stage, "lonely", "the toolstack asks for poweroff")?);
    strangers(stage)?;
    stage.sh("ip addr del 10.81.0.1/24 dev xenstub0")?;
    stage.expect_alone()
}

/// The vif goes, and comes back with the same MAC: the stub asks for its address again and answers.
fn replug(stage: &Stage, address: &str) -> Telling {
    stage
        .sh(&format!(
            "mac=$(xenstore-read /local/domain/0/backend/vif/$(xl domid lonely)/0/mac)
         xl network-detach lonely 0
         if ping -c 1 -W 1 {address}; then echo 'it answers without a vif'; exit 1; fi
         xl network-attach lonely bridge=xenstub0 mac=$mac
         for i in $(seq 100); do
             [ $(grep -c 'by DHCP' /var/log/xen/guest-lonely.log) -lt 2 ] || break; sleep 0.2
         done
         ping -c 2 -W 5 {address}"
        ))
        .map(drop)
}

const GUEST: &str = "pvh-128";

/// What a stranger does, how it says that it ended, and why the stub drops it. Who speaks at once may be dropped before it is
/// greeted.
const STRANGERS: [(&str, &str, &str); 2] = [
    ("speaking", "speaking: dropped", "it did not open with the token"),
    ("silent", "silent: dropped after 32 bytes", "it sent no token in time"),
];

/// A stub with a known address for the guest, and a stranger of some `$kind` who will knock there from before it is up until
/// it is let in. It is root of dom0, since the stub lets nobody else in: dom0's address and a port below 1024. It comes before
/// stubctl, which connects when the stub says that it listens: stubctl is stopped until the stranger has found the stub, and
/// by its priority it always has a knock on its way. It says what it got and that it ended.
const STRANGER: &str = r#"{ cat /etc/xen/stubdom/stubdom.cfg; echo 'extra = "ip=10.81.0.9/24"'; } >/run/visited.cfg
printf 'transport = "tcp"
config = "/run/visited.cfg"
' >/etc/xen/stubdom/pvh-128.conf
# So a program without words for its own address and port has dom0's address and a port that only root can have.
cd /proc/sys/net; echo 1 >ipv6/conf/xenstub0/addr_gen_mode; ip -6 addr flush dev xenstub0
echo 600 >ipv4/ip_unprivileged_port_start; echo '600 1000' >ipv4/ip_local_port_range
echo 20 >ipv6/neigh/xenstub0/retrans_time_ms
cat >/run/stranger.sh <<'END'
until ping -c 1 -W 1 10.81.0.9 >/dev/null 2>&1; do [ $SECONDS -lt 60 ] || exit; done
IFS=: read -r a b c d e f <<<"$(ip neigh show 10.81.0.9 | sed 's/.*lladdr \([^ ]*\).*/\1/')"
stub=$(printf 'fe80::%02x%s:%sff:fe%s:%s%s' $((0x$a ^ 2)) $b $c $d $e $f)
until { exec 3<>"/dev/tcp/$stub%xenstub0/8002"; } 2>/dev/null; do [ $SECONDS -lt 60 ] || exit; done
[ "$1" = silent ] || printf '%032d' 0 >&3
timeout 30 cat <&3 >/run/got 2>/dev/null
[ $? -eq 124 ] || echo "$1: dropped after $(wc -c </run/got) bytes"
END
rm -f /var/log/xen/guest-pvh-128-stubdom-*.log
chrt -f 1 bash /run/stranger.sh $kind >/run/stranger 2>&1 &
{
    until ls /sys/class/net | grep -q '^vif'; do sleep 0.02; done
    relay=$(pidof stubctl) && kill -STOP $relay
    until ping -c 1 -W 1 10.81.0.9 >/dev/null 2>&1; do :; done
    sleep 0.5
    kill -CONT $relay
} >/run/doorman 2>&1 &"#;

/// Nobody but stubctl feeds the guest, whoever comes first.
fn strangers(stage: &Stage) -> Telling {
    let saved = stage.saved(GUEST)?.file;
    for (kind, ends, why) in STRANGERS {
        stage.sh(&format!("kind={kind}\n{STRANGER}"))?;
        restore_paused(stage, GUEST, &saved)?;
        stage.sh(&format!("xl unpause {GUEST}"))?;
        stage.ask(GUEST, "verify")?;
        let said = stage.sh(
            "for i in $(seq 50); do [ ! -s /run/stranger ] || break; sleep 0.2; done; cat /run/stranger",
        )?;
        let log = stage.sh("cat /var/log/xen/guest-pvh-128-stubdom-*.log | tr -d '\\r'")?;
        let drops: Vec<_> = log.lines().filter(|line| line.contains("dropped a connection from")).collect();
        drops.iter().for_each(|line| stage.say(line));
        let is_that = |line: &str| line.contains(&format!("from {RELAY_ADDRESS}:")) && line.ends_with(why);
        ensure(said.starts_with(ends) && drops.len() == 1 && drops.into_iter().all(is_that), || {
            format!(
                "expected one connection from {RELAY_ADDRESS} to be dropped since {why}, and \"{ends}\"; the stranger said \"{said}\", the stub\n{log}"
            )
        })?;
        stage.sh(&format!("xl destroy {GUEST}"))?;
        stage.expect_alone()?;
    }
    let undo = "cd /proc/sys/net/ipv4; echo '32768 60999' >ip_local_port_range; echo 1024 >ip_unprivileged_port_start";
    stage.sh(&format!("rm /etc/xen/stubdom/{GUEST}.conf; {undo}")).map(drop)
}

/// The line of a stub's console with these words, once it is there.
fn await_log(stage: &Stage, stub: &str, words: &str) -> Telling<String> {
    stage.sh(&format!(
        "for i in $(seq 100); do tr -d '\\r' </var/log/xen/guest-{stub}.log | grep '{words}' && exit 0; sleep 0.2; done; \
         cat /var/log/xen/guest-{stub}.log; exit 1"
    ))
}
