//! From a host that knows nothing of stubs to one that has them.

use super::super::restore::expect_superpages;
use super::exchange::Exchange;
use crate::machine::{Options, Seat};
use crate::story::{Stage, Story, THROUGH_STUB, Telling, ensure};
use crate::survey::Survey;
use crate::tool;

/// Two machines.
pub(in crate::stories) const TWO_HOSTS: Story = Story {
    name: "live-two-hosts",
    proves: "a busy guest migrates live from a stock host to another host, through the stub there: every byte, its \
             superpages, and its TCP connection with the first host",
    options,
    tell: |stage| {
        let second = stage.machine.boot_second(stage.place, &options())?;
        migrates(stage, &Stage::on(&second, stage.place))
    },
};

const GUEST: &str = "pvh-net";

/// Pages that the guest writes in a second.
const RATE: u64 = 1024;

/// Where the second host waits for a migration.
const ADDRESS: &str = "10.80.0.3";
const PORT: u16 = 8003;

/// What the second host's toolstack and stubctl say.
const LOG: &str = "/run/receive.log";

fn options() -> Options {
    Options { mem_mib: 4096, dom0_mib: 2048, seat: Seat::First, ..Options::default() }
}

fn migrates(from: &Stage, to: &Stage) -> Telling {
    from.create(GUEST)?;
    let fresh = Survey::take(from, GUEST)?;
    make_stock(from)?;
    listen(to)?;
    let exchange = Exchange::start(from, "10.80.0.2")?;
    from.ask(GUEST, &format!("rate {RATE}"))?;
    let sent = from.run(&format!("timeout 240 xl -v migrate -s /run/dial {GUEST} {ADDRESS} 2>&1"))?;
    let said = to.run(&format!("cat {LOG}"))?.text;
    ensure(sent.code == 0, || {
        let [sent, said] = [&sent.text, &said].map(|text| tool::last_lines(text, 12));
        format!("xl migrate ended; the sender said\n{sent}\nthe receiver said\n{said}")
    })?;
    for line in said.lines().filter(|line| line.contains("stubctl: info")) {
        to.say(line);
    }
    ensure(said.contains("precopy"), || format!("one pass over memory only:\n{said}"))?;
    from.expect_alone()?;
    expect_superpages(to, &fresh, &Survey::take(to, GUEST)?)?;
    to.ask(GUEST, "verify")?;
    to.ask(GUEST, "ticking")?;
    let (nr_answers, gap_s) = exchange.finish(from)?;
    to.say(format!("{nr_answers} answers over one connection, the longest wait {gap_s:.1} s"));
    to.sh(&format!("xl destroy {GUEST}"))?;
    to.expect_alone()
}

/// Takes all that is ours off the first host, and gives it a way to dial the second: what xl has ssh do otherwise.
fn make_stock(stage: &Stage) -> Telling {
    stage.sh("stub=$(xl list | awk '/-stubdom-/ { print $2 }'); [ -z \"$stub\" ] || xl destroy $stub")?;
    stage
        .sh(&format!(
            "rm -r /usr/sbin/stubctl /usr/lib/xen-stubdom /etc/xen/stubdom
         printf '%s\\n' '#!/bin/bash' 'exec nc.openbsd -N \"$1\" {PORT}' >/run/dial; chmod +x /run/dial"
        ))
        .map(drop)
}

/// Waits for one migration: what sshd does otherwise.
fn listen(stage: &Stage) -> Telling {
    stage.sh(&format!(
        "ip address flush dev xenbr0; ip address add {ADDRESS}/24 dev xenbr0
         printf '%s\\n' '#!/bin/bash' 'exec 2>{LOG}; {THROUGH_STUB}exec xl -v migrate-receive' >/run/receive.sh
         chmod +x /run/receive.sh
         setsid busybox nc -l -p {PORT} -e /run/receive.sh </dev/null >/dev/null 2>&1 &
         until ss -ltn | grep -q :{PORT}; do sleep 0.1; done"
    ))
    .map(drop)
}
