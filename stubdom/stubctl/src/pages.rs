//! `stubctl pages`: every frame that is offline, pending or broken.
//!
//! **Takes** nothing. **Gives** the frames, and the owners of those that are pending. **Never** marks a frame, nor changes
//! anything else.

use crate::cli::PagesArguments;
use crate::error::Error;
use crate::ffi::hypercalls::Hypercalls;
use crate::frame::State;
use crate::host::Host;
use crate::marks;
use crate::text;
use control::Untrusted;
use serde_json::{Value, json};
use xen_abi::types::{Domid, Mfn};

/// Frames asked for in one call; one that is no memory spoils the call, which is halved then.
const CHUNK: u64 = 4096;

/// A frame with something to tell.
struct Page {
    mfn: Mfn,
    state: State,
    /// The domain that owns it, or those of which one does.
    owners: Vec<Domid>,
}

/// Lists them.
pub(crate) fn run(host: &Host, arguments: &PagesArguments) -> Result<(), Error> {
    let mut pages = Vec::new();
    let mut nr_looked = 0;
    for (first, nr_frames) in host.xen.ram()? {
        let end = first.raw() + nr_frames;
        for first in (first.raw()..end).step_by(usize::try_from(CHUNK).unwrap_or(usize::MAX)) {
            look(host, first, CHUNK.min(end - first), &mut pages);
        }
        nr_looked += nr_frames;
    }
    let calls = Hypercalls::open()?;
    for page in &mut pages {
        page.owners = owners(host, &calls, page)?;
    }
    if arguments.json {
        println!("{}", text::json(&Value::Array(pages.iter().map(|page| page.json(host)).collect())));
    } else if pages.is_empty() {
        println!("no frame of {nr_looked} is offline, pending or broken");
    } else {
        pages.iter().for_each(|page| println!("{}", page.line(host)));
    }
    Ok(())
}

/// Asks for a range, and for its halves when there is a hole in it.
fn look(host: &Host, first: u64, nr_frames: u64, pages: &mut Vec<Page>) {
    let mut words = vec![0; usize::try_from(nr_frames).unwrap_or_default()];
    if host.xen.offline_states(Mfn::new(first), &mut words).is_ok() {
        let states = (first..).zip(words.iter().map(|word| State::new(*word)));
        let told = states.filter(|(_, state)| !state.is_ordinary());
        pages.extend(told.map(|(mfn, state)| Page { mfn: Mfn::new(mfn), state, owners: Vec::new() }));
    } else if nr_frames > 1 {
        let half = nr_frames / 2;
        look(host, first, half, pages);
        look(host, first + half, nr_frames - half, pages);
    }
}

/// The owner of a pending frame: the PV domain that has it, or else every other domain that has memory at the place that the
/// machine-to-phys table names. Which of those it is only a mark could tell. Nor does anything tell whose a broken frame is.
fn owners(host: &Host, calls: &Hypercalls, page: &Page) -> Result<Vec<Domid>, Error> {
    if !page.state.is_pending() || page.state.is_broken() {
        return Ok(Vec::new());
    }
    if let Some(owner) = marks::pv_owner(host, calls, page.mfn)? {
        return Ok(vec![owner]);
    }
    let Some(gfn) = host.xen.place_of(page.mfn)? else { return Ok(Vec::new()) };
    let mut owners = Vec::new();
    for (domid, info) in host.xen.domains()? {
        // Asked for a place that waits for a frame, Xen gives it one.
        let has =
            info.hvm && (host.xen.populates_on_demand(domid)? || marks::has_frame(calls, domid, gfn.raw())?);
        owners.extend(has.then_some(domid));
    }
    Ok(owners)
}

impl Page {
    fn name(host: &Host, domid: Domid) -> Option<Untrusted<String>> {
        host.name_of(domid).ok().flatten()
    }

    fn json(&self, host: &Host) -> Value {
        let owner = match self.owners[..] {
            [owner] => Some(owner),
            _ => None,
        };
        json!({
            "mfn": self.mfn.raw(),
            "state": self.state.to_string(),
            "domid": owner.map(Domid::raw),
            "guest": owner.and_then(|owner| Self::name(host, owner)).map(|name| name.raw().to_owned()),
            "one_of": self.owners.iter().map(|owner| owner.raw()).collect::<Vec<_>>(),
        })
    }

    fn line(&self, host: &Host) -> String {
        let named = |domid: &Domid| {
            let name = Self::name(host, *domid)
                .unwrap_or_else(|| Untrusted::new("a domain without a name".to_owned()));
            format!("{name} ({domid})")
        };
        let owners: Vec<_> = self.owners.iter().map(named).collect();
        let owned = match owners.len() {
            0 => String::new(),
            1 => format!(", owned by {}", owners[0]),
            _ => format!(", owned by one of {}", owners.join(", ")),
        };
        format!("{}: {}{owned}", self.mfn, self.state)
    }
}
