//! Dom0 as stubctl sees it: hypervisor, xenstore, and the reasons to stop.

use crate::error::Error;
use crate::ffi::xenctrl::Xenctrl;
use crate::ffi::xenstore::{Store, StoreError};
use crate::interrupt::Interrupt;
use control::Untrusted;
use xen_abi::types::Domid;

/// The handles that nearly everything needs.
pub(crate) struct Host {
    /// The hypervisor.
    pub(crate) xen: Xenctrl,
    /// Xenstore.
    pub(crate) store: Store,
    /// Signals and the parent.
    pub(crate) interrupt: Interrupt,
}

impl Host {
    /// Opens them.
    pub(crate) fn open(interrupt: Interrupt) -> Result<Self, Error> {
        Ok(Self { xen: Xenctrl::open()?, store: Store::open()?, interrupt })
    }

    /// The name of a domain: xl set it, from a configuration that may have come with a stream.
    pub(crate) fn name_of(&self, domid: Domid) -> Result<Option<Untrusted<String>>, StoreError> {
        self.store.read(&home(domid, "name"))
    }

    /// The name of a domain, or its number if it has none.
    pub(crate) fn name_or_number(&self, domid: Domid) -> Result<Untrusted<String>, StoreError> {
        Ok(self.name_of(domid)?.unwrap_or_else(|| Untrusted::new(domid.to_string())))
    }

    /// The domain of that name.
    pub(crate) fn domid_of(&self, name: &str) -> Result<Option<Domid>, StoreError> {
        for domid in self.domains()? {
            if self.name_of(domid)?.is_some_and(|found| found.raw() == name) {
                return Ok(Some(domid));
            }
        }
        Ok(None)
    }

    /// Every domain that xenstore knows.
    pub(crate) fn domains(&self) -> Result<Vec<Domid>, StoreError> {
        let names = self.store.children("/local/domain")?;
        Ok(names.iter().filter_map(|name| name.raw().parse().ok()).map(Domid::new).collect())
    }

    /// A domid that stands in a node of dom0's.
    pub(crate) fn domid_in(&self, path: &str) -> Result<Option<Domid>, StoreError> {
        Ok(self.store.read_number(path)?.map(Domid::new))
    }
}

/// Tells the operator a line. Who does not read any more misses it, and what is under way goes on.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        log::debug!("standard output: {error}");
    }
}

/// A node below a domain's home.
pub(crate) fn home(domid: Domid, node: &str) -> String {
    format!("/local/domain/{}/{node}", domid.raw())
}
