//! Dom0 as stubctl sees it: hypervisor, xenstore, and the reasons to stop.

use crate::error::Error;
use crate::ffi::xenctrl::{DomainInfo, Xenctrl};
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

    /// The domain of that name: a living one, else one that is being destroyed.
    pub(crate) fn domid_of(&self, name: &str) -> Result<Option<Domid>, Error> {
        let mut found = Vec::new();
        for domid in self.domains()? {
            if self.name_of(domid)?.is_some_and(|found| found.raw() == name) {
                found.push((domid, self.xen.domain_info(domid)?));
            }
        }
        Ok(living_first(&found))
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

/// Chooses among domains of one name. Xenstore may have an entry without a domain, which somebody has left or made.
fn living_first(found: &[(Domid, Option<DomainInfo>)]) -> Option<Domid> {
    let of = |is_dying| {
        let is_it = |info: &DomainInfo| info.dying == is_dying;
        found.iter().find(|(_, info)| info.as_ref().is_some_and(is_it)).map(|(domid, _)| *domid)
    };
    of(false).or_else(|| of(true))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_domain_wins_over_a_dying_one_and_over_an_entry_without_a_domain() {
        let info = |dying| Some(DomainInfo { dying, ..DomainInfo::example() });
        let [stale, dying, living] = [(1, None), (2, info(true)), (5, info(false))];
        let first = |found: &[(u16, Option<DomainInfo>)]| {
            let found: Vec<_> = found.iter().map(|(id, info)| (Domid::new(*id), *info)).collect();
            living_first(&found).map(Domid::raw)
        };
        assert_eq!(first(&[stale, dying, living]), Some(5));
        assert_eq!(first(&[stale, dying]), Some(2));
        assert_eq!(first(&[stale]), None);
    }
}
