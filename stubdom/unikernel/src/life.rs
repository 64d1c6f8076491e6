//! When the stub ends: when the toolstack says so, and when its target is gone.

use alloc::format;
use alloc::string::String;
use control::nodes;
use xen_front::hypercall::sched::{self, Reason};
use xen_front::types::Domid;
use xen_front::xenstore::{Error, Xenstore};

/// The node by which a toolstack asks a domain to end.
const SHUTDOWN: &str = "control/shutdown";

/// Token of the watch on [`SHUTDOWN`].
pub(crate) const SHUTDOWN_TOKEN: &str = "shutdown";

/// Token of the watch on the target's link to us.
pub(crate) const TARGET_TOKEN: &str = "target";

/// Watches for the toolstack's wish.
///
/// # Errors
/// Xenstore's.
pub(crate) fn watch(store: &mut Xenstore) -> Result<(), Error> {
    store.watch(SHUTDOWN, SHUTDOWN_TOKEN)
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
