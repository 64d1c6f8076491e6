//! What keeps every frame of a guest where it is.
//!
//! **Takes** a guest. **Gives** the first obstacle by name. **Never** changes anything: it is asked before a stub is started,
//! a guest is asked to suspend or a frame is marked.

use crate::error::Error;
use crate::host::{Host, home};
use crate::toolstack;
use crate::verdict::Refused;
use control::nodes;
use xen_abi::types::Domid;

/// The first obstacle of a guest, if it has any.
///
/// # Errors
/// Xen or xenstore does not answer.
pub(crate) fn of(host: &Host, guest: Domid) -> Result<Option<Refused>, Error> {
    if let Some(refused) = stubs_own(host, guest)? {
        return Ok(Some(refused));
    }
    if let Some(refused) = toolstack::refusal(host, guest)? {
        return Ok(Some(refused));
    }
    if let Some(refused) = device_model_domain(host, guest)? {
        return Ok(Some(refused));
    }
    if !host.store.children(&format!("/local/domain/0/backend/pci/{}", guest.raw()))?.is_empty() {
        let text = "the guest has passed-through PCI devices, whose DMA cannot be stopped: shut it down";
        return Ok(Some(Refused::new("passthrough", text)));
    }
    if host.xen.is_monitored(guest)? {
        let text = "a monitor watches the guest's memory (mem_access, altp2m), and what it has set for the frame would be \
                    lost: end the monitor, and try again";
        return Ok(Some(Refused::new("monitored", text)));
    }
    Ok(None)
}

/// A stub is a PV domain that cannot suspend: it can only make room for another.
fn stubs_own(host: &Host, stub: Domid) -> Result<Option<Refused>, Error> {
    let Some(target) = host.domid_in(&home(stub, nodes::TARGET_OF_STUB))? else { return Ok(None) };
    let guest = host.name_or_number(target)?;
    let text = format!(
        "it is memory of the stub of {guest} ({target}), which is given back when the stub ends: stubctl detach {0} (and \
         stubctl attach {0} for another stub); name the frame in badpage= on Xen's command line",
        target.raw()
    );
    Ok(Some(Refused::new("stubs-own", text)))
}

fn device_model_domain(host: &Host, guest: Domid) -> Result<Option<Refused>, Error> {
    let Some(domain) = host.store.read(&home(guest, "image/device-model-domid"))? else { return Ok(None) };
    let text = format!(
        "its device model runs in a domain of its own (d{domain}), which dom0 can neither stop nor ask what it has mapped: \
         migrate the guest (xl migrate to this host will do)"
    );
    Ok(Some(Refused::new("device-model-domain", text)))
}
