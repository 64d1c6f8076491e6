//! From one host to another: two machines, joined by a network that is also the guests'.

use super::super::restore::expect_superpages;
use super::BUSY;
use super::cases::{CASES, Case, End};
use super::exchange::Exchange;
use super::failures::{TRANSPORTS, configure, configure_for, lives, told, undo};
use super::receiver::{AWAIT_END, Migration, Receiver, Source};
use super::traces::Traces;
use crate::machine::{Options, Seat};
use crate::soak::{Chance, Soak};
use crate::story::{Stage, Story, Telling, ensure};
use crate::survey::Survey;
use crate::tool;

/// From a host that knows nothing of stubs to one that has them.
pub(in crate::stories) const TWO_HOSTS: Story = Story {
    name: "live-two-hosts",
    proves: "a busy PVH guest migrates live from a stock host to another host, through the stub there: several passes, every \
             byte, its superpages, and its TCP connection with the first host",
    options,
    tell: |stage| from_a_stock_host(stage, &GUESTS[..1], 1),
};

/// The same with an HVM guest too.
pub(in crate::stories) const STOCK_HOST: Soak = Soak {
    name: "live-stock-host",
    proves: "busy guests, PVH and HVM with a device model, migrate live from a stock host to another host, through the stub \
             there: several passes, every byte, their superpages, and their TCP connection with the first host",
    options,
    rounds: 1,
    tell: |stage, _, rounds| from_a_stock_host(stage, &GUESTS, rounds),
};

/// Back and forth between two hosts, with failures in between.
pub(in crate::stories) const BACK_AND_FORTH: Soak = Soak {
    name: "live-two-hosts",
    proves: "a busy guest that migrates back and forth between two hosts, with failures chosen at random in between, never \
             has a wrong byte, keeps its TCP connection, and every page comes back on both hosts",
    options,
    rounds: 50,
    tell: back_and_forth,
};

/// The guests and their addresses.
const GUESTS: [(&str, &str); 2] = [("pvh-net", "10.80.0.2"), ("hvm-net", "10.80.0.4")];

/// Pages that a guest writes in a second.
const RATE: u64 = BUSY;

/// Pages a second on the way back and forth; the network takes some 1,500.
const RATES: [u64; 5] = [0, 16, 64, 256, 1024];

/// Settings for a guest that goes back and forth: the netfront of Linux 6.1 loses its receive buffers, a MiB, with each
/// migration, by the stock receiver too.
const ROOMY: &str = "memory=160 'extra+=\" witness.mb=16\"'";

/// Where a host waits for a migration.
const PORT: u16 = 8003;

/// What the receiving toolstack and stubctl say.
const LOG: &str = "/run/receive.log";

fn options() -> Options {
    Options { mem_mib: 4096, dom0_mib: 2048, seat: Seat::First, ..Options::default() }
}

fn from_a_stock_host(stage: &Stage, guests: &[(&str, &str)], rounds: u32) -> Telling {
    let second = stage.machine.boot_second(stage.place, &options())?;
    let second = Stage::on(&second, stage.place);
    let hosts = join(stage, &second)?;
    for _ in 0..rounds {
        let mut fresh = Vec::new();
        for &(guest, address) in guests {
            stage.create(guest)?;
            fresh.push((guest, address, Survey::take(stage, guest)?));
            stage.sh(&format!("xl pause {guest}"))?; // until it is its turn: they share a processor
        }
        stage.sh(MAKE_STOCK)?;
        for (guest, address, fresh) in fresh {
            migrates(&hosts, guest, address, &fresh)?;
        }
        stage.expect_alone()?;
        stage.sh(MAKE_OURS)?;
    }
    Ok(())
}

/// Takes all that is ours off a host but the example guests.
const MAKE_STOCK: &str = "mkdir -p /run/ours/etc; mv /usr/sbin/stubctl /usr/lib/xen-stubdom /run/ours
    cd /etc/xen/stubdom; for file in *; do [ $file = guests ] || mv $file /run/ours/etc; done";

/// Puts it back.
const MAKE_OURS: &str =
    "cd /run/ours; mv stubctl /usr/sbin; mv xen-stubdom /usr/lib; mv etc/* /etc/xen/stubdom";

/// One of the two.
#[derive(Clone, Copy, Debug)]
struct Host<'a> {
    stage: &'a Stage<'a>,
    address: &'static str,
}

/// Gives the second host an address of its own, and both a way to dial the other: what xl has ssh do otherwise. It ends
/// when either side does, as ssh (netcat waits for both).
fn join<'a>(first: &'a Stage<'a>, second: &'a Stage<'a>) -> Telling<[Host<'a>; 2]> {
    let hosts = [(first, "10.80.0.1"), (second, "10.80.0.3")].map(|(stage, address)| Host { stage, address });
    for Host { stage, address } in hosts {
        stage.sh(&format!(
            "ip address flush dev xenbr0; ip address add {address}/24 dev xenbr0
             printf '%s\\n' '#!/bin/bash' 'exec 3<>/dev/tcp/$1/{PORT}' \
                 'cat <&0 >&3 & cat <&3 & wait -n; kill $(jobs -p) 2>/dev/null' >/run/dial; chmod +x /run/dial"
        ))?;
    }
    Ok(hosts)
}

fn migrates(hosts: &[Host<'_>; 2], guest: &str, address: &str, fresh: &Survey) -> Telling {
    let [Host { stage: from, .. }, to] = hosts;
    from.sh(&format!("xl unpause {guest}"))?;
    let exchange = Exchange::start(from, address)?;
    from.ask(guest, &format!("rate {RATE}"))?;
    let migration = send(from, to, guest, Receiver::through_stub(to.stage)?)?;
    migration.expect_success()?;
    migration.expect_passes(RATE)?;
    for line in migration.text.lines().filter(|line| line.contains("stubctl: info")) {
        from.say(line);
    }
    expect_superpages(to.stage, fresh, &Survey::take(to.stage, guest)?)?;
    lives(to.stage, guest)?;
    from.say(exchange.finish(from)?);
    to.stage.sh(&format!("xl destroy {guest}"))?;
    to.stage.expect_alone()
}

/// One migration, whatever comes of it.
fn send(from: &Stage, to: &Host<'_>, guest: &str, receiver: Receiver) -> Telling<Migration> {
    listen(to.stage, receiver)?;
    let source = Source::note(from, guest)?;
    let sent = from.run(&format!("timeout 240 xl -v migrate -s /run/dial {guest} {} 2>&1", to.address))?;
    let said = to.stage.sh(&format!(
        "{AWAIT_END}; kill $(cat {LOG}.pid) 2>/dev/null
         cat {LOG}"
    ))?;
    source.expect_no_triple_fault(from)?;
    ensure(sent.code != 124, || format!("xl migrate did not end:\n{}", tool::last_lines(&said, 12)))?;
    Ok(Migration { code: sent.code, text: format!("{}{said}\n", sent.text) })
}

/// Waits for one migration: what sshd does otherwise.
fn listen(stage: &Stage, receiver: Receiver) -> Telling {
    let script = receiver.script();
    stage.sh(&format!(
        "printf '%s\\n' '#!/bin/bash' 'exec 2>{LOG}; exec {script}' >/run/listen.sh; chmod +x /run/listen.sh; : >{LOG}
         setsid busybox nc -l -p {PORT} -e /run/listen.sh </dev/null >/dev/null 2>&1 & echo $! >{LOG}.pid
         until ss -ltn | grep -q :{PORT}; do sleep 0.1; done"
    ))
    .map(drop)
}

/// The sender is not on the host where a deed is done.
fn is_on_the_receiver(case: &Case) -> bool {
    case.name != "sender killed in memory"
}

fn back_and_forth(stage: &Stage, chance: &mut Chance, rounds: u32) -> Telling {
    let second = stage.machine.boot_second(stage.place, &options())?;
    let second = Stage::on(&second, stage.place);
    let mut hosts = join(stage, &second)?;
    let (guest, address) = GUESTS[0];
    let cases: Vec<Case> = CASES.iter().copied().filter(is_on_the_receiver).collect();
    let free_kib = rehearse(&mut hosts, guest)?;
    hosts[0].stage.create_with(guest, ROOMY)?;
    let exchange = Exchange::start(stage, address)?;
    let mut nr_broken = 0;
    for round in 1..=rounds {
        let [from, to] = hosts;
        let transport = TRANSPORTS[chance.below(TRANSPORTS.len())];
        stage.say(format!(
            "round {round} of {rounds}: from {} to {} by {transport}",
            from.address, to.address
        ));
        from.stage.ask(guest, &format!("rate {}", RATES[chance.below(RATES.len())]))?;
        // Every other migration, by chance, is broken before.
        if let Some(case) = chance.pick(&cases).filter(|_| chance.below(2) == 0) {
            configure_for(to.stage, guest, case, transport)?;
            break_one(&hosts, guest, case)?;
            nr_broken += 1;
            if case.end == End::Moves {
                hosts.reverse();
                continue;
            }
        }
        succeeds(&mut hosts, guest, transport)?;
    }
    stage.say(exchange.finish(stage)?);
    stage.say(format!("{rounds} migrations, {nr_broken} broken before: every byte right"));
    hosts[0].stage.sh(&format!("xl destroy {guest}"))?;
    expect_all_back(&hosts, free_kib)
}

/// What Xen and dom0 allocate once is not to count: a guest goes there and back by each transport, and is destroyed. Gives
/// the free memory of the first host and the second.
fn rehearse(hosts: &mut [Host<'_>; 2], guest: &str) -> Telling<[(&'static str, u64); 2]> {
    hosts[0].stage.create(guest)?;
    for transport in TRANSPORTS {
        succeeds(hosts, guest, transport)?;
        succeeds(hosts, guest, transport)?;
    }
    hosts[0].stage.sh(&format!("xl destroy {guest}"))?;
    let [first, second] = *hosts;
    first.stage.expect_alone()?;
    Ok([(first.address, first.stage.settled_free_kib()?), (second.address, second.stage.settled_free_kib()?)])
}

/// No domain is left on either, and every page has come back.
fn expect_all_back(hosts: &[Host<'_>; 2], free_kib: [(&'static str, u64); 2]) -> Telling {
    for host in hosts {
        host.stage.expect_alone()?;
        for (_, free_kib) in free_kib.iter().filter(|(address, _)| *address == host.address) {
            host.stage.expect_free(*free_kib)?;
        }
    }
    Ok(())
}

/// The migration that nothing breaks; the guest's host is the first then.
fn succeeds(hosts: &mut [Host<'_>; 2], guest: &str, transport: &str) -> Telling {
    let [from, to] = *hosts;
    configure(to.stage, guest, transport)?;
    send(from.stage, &to, guest, Receiver::through_stub(to.stage)?)?.expect_success()?;
    lives(to.stage, guest)?;
    hosts.reverse();
    Ok(())
}

/// A migration that breaks leaves nothing on either host.
fn break_one(hosts: &[Host<'_>; 2], guest: &'static str, case: &Case) -> Telling {
    let [from, to] = hosts;
    from.stage.say(format!("{} (at {})", case.name, case.at));
    let mut there = Traces::take(from.stage, guest)?;
    let here = Traces::take(to.stage, guest)?;
    let migration = send(from.stage, to, guest, Receiver::with_deed(to.stage, guest, case.at, case.deed)?);
    undo(to.stage, guest, case)?;
    let migration = migration?;
    from.stage.say(format!("  {}", told(case, &migration)?));
    if case.end == End::Moves {
        return lives(to.stage, guest);
    }
    lives(from.stage, guest)?;
    if case.may_be_behind_suspend() && !migration.found_it_running() {
        there.excuse_watcher(from.stage)?;
    }
    there.expect_same(from.stage)?;
    here.expect_same(to.stage)
}
