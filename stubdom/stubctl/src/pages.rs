//! `stubctl pages`: every frame that is offline, pending or broken.

use crate::cli::PagesArguments;
use crate::error::Error;
use crate::frame::{Owner, State};
use crate::host::Host;
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
    owner: Option<Domid>,
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
    for page in &mut pages {
        page.owner = owner(host, page)?;
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
        pages.extend(told.map(|(mfn, state)| Page { mfn: Mfn::new(mfn), state, owner: None }));
    } else if nr_frames > 1 {
        let half = nr_frames / 2;
        look(host, first, half, pages);
        look(host, first + half, nr_frames - half, pages);
    }
}

/// The owner of a pending frame, which marking it once more tells and changes nothing. Never of a broken one, whose owner
/// Xen would crash, and nothing else tells.
fn owner(host: &Host, page: &Page) -> Result<Option<Domid>, Error> {
    if !page.state.is_pending() || page.state.is_broken() {
        return Ok(None);
    }
    Ok(match Owner::of_mark(host.xen.mark_offline(page.mfn)?) {
        Owner::Domain(domid) => Some(domid),
        _ => None,
    })
}

impl Page {
    fn name(&self, host: &Host) -> Option<Untrusted<String>> {
        host.name_of(self.owner?).ok().flatten()
    }

    fn json(&self, host: &Host) -> Value {
        json!({
            "mfn": self.mfn.raw(),
            "state": self.state.to_string(),
            "domid": self.owner.map(Domid::raw),
            "guest": self.name(host),
        })
    }

    fn line(&self, host: &Host) -> String {
        let owner = self.owner.map(|domid| {
            format!(
                ", owned by {} ({domid})",
                self.name(host).unwrap_or_else(|| Untrusted::new("a domain without a name".to_owned()))
            )
        });
        format!("{}: {}{}", self.mfn, self.state, owner.unwrap_or_default())
    }
}
