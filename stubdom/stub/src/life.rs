//! When the stub ends: when the toolstack says so, and when its target is gone.

use alloc::format;
use alloc::string::String;
use control::nodes;
use xen_abi::types::Domid;
use xen_front::hypercall::sched::{self, Reason};
use xen_front::xenstore::{Error, Xenstore};

/// The node by which a toolstack asks a domain to end.
const SHUTDOWN: &str = "control/shutdown";

/// The node in which `xl sysrq` leaves a letter, Linux's magic SysRq keys.
const SYSRQ: &str = "control/sysrq";

/// How long a stub lives without a target, in nanoseconds: whoever made it and did not pair it is gone.
pub(crate) const UNPAIRED_NS: u64 = 60_000_000_000;

/// Token of the watch on [`SHUTDOWN`].
pub(crate) const SHUTDOWN_TOKEN: &str = "shutdown";

/// Token of the watch on [`SYSRQ`].
pub(crate) const SYSRQ_TOKEN: &str = "sysrq";

/// Token of the watch on the target's link to us.
pub(crate) const TARGET_TOKEN: &str = "target";

/// Watches for the toolstack's wishes.
///
/// # Errors
/// Xenstore's.
pub(crate) fn watch(store: &mut Xenstore) -> Result<(), Error> {
    store.watch(SHUTDOWN, SHUTDOWN_TOKEN)?;
    store.watch(SYSRQ, SYSRQ_TOKEN)
}

/// Watches the node in the target's home that names us; the toolstack removes that home when it destroys the target.
///
/// # Errors
/// Xenstore's.
pub(crate) fn watch_target(store: &mut Xenstore, target: Domid) -> Result<(), Error> {
    store.watch(&link_of(target), TARGET_TOKEN)
}

/// Ends the stub if the toolstack has asked for it. Whatever it asks for, this is the only end that there is: the stub
/// cannot be suspended or migrated itself, and nothing would come of a reboot.
pub(crate) fn follow_shutdown(store: &mut Xenstore) {
    let Ok(wish) = store.read(SHUTDOWN) else { return };
    match wish.as_str() {
        "" => {}
        "poweroff" | "halt" | "reboot" => {
            // The toolstack takes the empty node for "heard"; without it, it only waits a little longer.
            let _ = store.write(SHUTDOWN, "");
            end(&format!("the toolstack asks for {wish}"));
        }
        other => log::warn!("cannot {other}: this domain lives and dies with its target"),
    }
}

/// Crashes on `xl sysrq STUB c`, as Linux does: how a failure of ours looks can be tried at any time.
pub(crate) fn follow_sysrq(store: &mut Xenstore) {
    match store.read(SYSRQ).as_deref() {
        Ok("c") => panic!("the toolstack asks for a crash (sysrq c)"),
        Ok("") | Err(_) => {}
        Ok(other) => log::warn!("sysrq {other}: this domain knows only c"),
    }
}

/// Ends the stub if its target no longer names it.
pub(crate) fn follow_target(store: &mut Xenstore, target: Domid) {
    match store.read(&link_of(target)) {
        Ok(_) => {}
        Err(Error::Refused(_)) => end(&format!("the target {target} is gone")),
        Err(error) => log::warn!("{error}"),
    }
}

/// Ends the stub.
pub(crate) fn end(why: &str) -> ! {
    log::info!("{why}: ending");
    sched::shutdown(Reason::Poweroff)
}

fn link_of(target: Domid) -> String {
    format!("/local/domain/{}/{}", target.raw(), nodes::STUB_OF_TARGET)
}
