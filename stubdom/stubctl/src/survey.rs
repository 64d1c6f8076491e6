//! `stubctl map`: which parts of a guest's memory are superpages, as its stub reads them from its own page table.
//!
//! **Takes** the pieces of a survey. **Gives** counts and one letter a region. **Never** pauses the guest, and leaves
//! no stub behind that it started, unless asked to.

use crate::cli::MapArguments;
use crate::commands::Guest;
use crate::conf::Conf;
use crate::control_channel::{ControlChannel, ControlError, Heard};
use crate::error::Error;
use crate::host::Host;
use crate::pair::{self, PairError, Paired, Stub};
use crate::text;
use control::{FromStub, RegionKind, ToStub};
use serde_json::{Value, json};
use xen_abi::types::{Gfn, Order};

/// A survey as far as it came.
#[derive(Debug, Default, PartialEq, Eq)]
struct Survey {
    /// One for each 2 MiB region, from gfn 0.
    regions: Vec<RegionKind>,
    nr_contiguous_1g: u64,
    /// Gfns with a frame: also those of Xen's own pages that the guest has mapped (`shared_info`, grant tables).
    nr_frames: u64,
    /// Pages that the guest owns, by Xen's count.
    nr_owned: u64,
}

/// A piece that does not belong where it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Misplaced {
    expected: u64,
    got: u64,
}

/// Surveys a guest and prints the result.
pub(crate) fn run(host: &Host, arguments: &MapArguments) -> Result<(), Error> {
    let guest = Guest::find(host, &arguments.guest)?;
    let conf = guest.conf()?;
    let mut survey = match pair::find_or_start(host, &conf, guest.name.raw(), guest.domid)? {
        Paired::Found(stub) => {
            let timeout = conf.stall_timeout;
            let mut channel = ControlChannel::open_paired(host, stub, guest.domid, timeout, timeout)?;
            ask(host, &guest, &mut channel)?
        }
        Paired::Made(stub) => with_new_stub(host, &conf, &guest, stub, arguments.keep)?,
    };
    survey.nr_owned = host.xen.domain_info(guest.domid)?.map_or(0, |info| info.tot_pages);
    if arguments.json {
        println!("{}", text::json(&survey.json(&guest)));
    } else {
        println!("{}", survey.text(&guest));
    }
    Ok(())
}

fn with_new_stub(
    host: &Host,
    conf: &Conf,
    guest: &Guest,
    stub: Stub<'_>,
    keep: bool,
) -> Result<Survey, Error> {
    let survey = ask(host, guest, &mut stub.greet(conf)?)?;
    if keep {
        stub.keep();
    }
    Ok(survey)
}

/// Prints which machine frame stands behind each gfn, a line each; "-" for a hole.
pub(crate) fn locate(host: &Host, wanted: &str, gfns: &[u64]) -> Result<(), Error> {
    let guest = Guest::find(host, wanted)?;
    let conf = guest.conf()?;
    let stub = pair::find(host, guest.domid)?.ok_or(PairError::NoStub(guest.name))?;
    let timeout = conf.stall_timeout;
    let mut channel = ControlChannel::open_paired(host, stub, guest.domid, timeout, timeout)?;
    for gfn in gfns {
        channel.send(&ToStub::Locate { gfn: Gfn::new(*gfn) })?;
        let mfn = channel.wait("Located", |message| match message {
            FromStub::Located { mfn } => Some(mfn),
            _ => None,
        })?;
        println!("{}", mfn.map_or_else(|| "-".to_owned(), |mfn| format!("{:#x}", mfn.raw())));
    }
    Ok(())
}

fn ask(host: &Host, guest: &Guest, channel: &mut ControlChannel<'_>) -> Result<Survey, Error> {
    let end = host.xen.end_gfn(guest.domid)?;
    channel.send(&ToStub::Survey { end })?;
    let mut survey = Survey::default();
    let limit = nr_regions(end);
    let done = channel.wait_for_pieces("SurveyDone", |message| survey.take(limit, message))?;
    done.map_err(|Misplaced { expected, got }| {
        let text = format!("the survey goes on at region {got}, expected {expected} of {limit}");
        ControlError::Failed(text)
    })?;
    Ok(survey)
}

fn nr_regions(end: Gfn) -> u64 {
    end.raw().div_ceil(Order::PAGE_2M.nr_frames())
}

impl Survey {
    /// Takes a message: a piece that leads on, or the end of the survey.
    fn take(&mut self, limit: u64, message: FromStub<'_>) -> Heard<Result<(), Misplaced>> {
        match message {
            FromStub::Survey { first_region, kinds } => match self.add(limit, first_region, kinds) {
                Ok(()) => Heard::Piece,
                Err(misplaced) => Heard::Answer(Err(misplaced)),
            },
            FromStub::SurveyDone { nr_contiguous_1g, nr_frames } => {
                (self.nr_contiguous_1g, self.nr_frames) = (nr_contiguous_1g, nr_frames);
                Heard::Answer(Ok(()))
            }
            _ => Heard::Nothing,
        }
    }

    /// An empty piece leads nowhere: with those a survey would have no end.
    fn add(&mut self, limit: u64, first_region: u64, codes: &[u8]) -> Result<(), Misplaced> {
        let expected = self.regions.len() as u64;
        let misplaced = Misplaced { expected, got: first_region };
        if codes.is_empty() || first_region != expected || expected + codes.len() as u64 > limit {
            return Err(misplaced);
        }
        for code in codes {
            self.regions.push(RegionKind::from_code(*code).ok_or(misplaced)?);
        }
        Ok(())
    }

    fn count(&self, kind: RegionKind) -> usize {
        self.regions.iter().filter(|region| **region == kind).count()
    }

    /// Regions with any frame in them.
    fn nr_used(&self) -> usize {
        self.regions.len() - self.count(RegionKind::Hole)
    }

    fn json(&self, guest: &Guest) -> Value {
        let map: String = self.regions.iter().map(|region| letter(*region)).collect();
        json!({
            "guest": guest.name,
            "domid": guest.domid.raw(),
            "regions_2m": self.nr_used(),
            "superpages_2m": self.count(RegionKind::Superpage),
            "small_2m": self.count(RegionKind::Small),
            "partial_2m": self.count(RegionKind::Partial),
            "superpages_1g": self.nr_contiguous_1g,
            "frames": self.nr_frames,
            "owned": self.nr_owned,
            "map": map,
        })
    }

    fn text(&self, guest: &Guest) -> String {
        format!(
            "{} ({}): {} of {} regions of 2 MiB contiguous ({} in small pages, {} partial), {} of 1 GiB; {} pages owned",
            guest.name,
            guest.domid,
            self.count(RegionKind::Superpage),
            self.nr_used(),
            self.count(RegionKind::Small),
            self.count(RegionKind::Partial),
            self.nr_contiguous_1g,
            self.nr_owned
        )
    }
}

fn letter(region: RegionKind) -> char {
    match region {
        RegionKind::Hole => '.',
        RegionKind::Superpage => 'S',
        RegionKind::Small => 's',
        RegionKind::Partial => 'p',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::Untrusted;
    use xen_abi::types::Domid;

    fn piece(first_region: u64, kinds: &[u8]) -> FromStub<'_> {
        FromStub::Survey { first_region, kinds }
    }

    #[test]
    fn pieces_in_order_become_one_map() {
        let mut survey = Survey::default();
        assert!(matches!(survey.take(6, piece(0, &[1, 1, 2])), Heard::Piece));
        assert!(matches!(survey.take(6, piece(3, &[0, 3])), Heard::Piece));
        let done = FromStub::SurveyDone { nr_contiguous_1g: 0, nr_frames: 1600 };
        assert!(matches!(survey.take(6, done), Heard::Answer(Ok(()))));
        let guest = Guest { domid: Domid::new(5), name: Untrusted::new("db".to_owned()) };
        let value = survey.json(&guest);
        assert_eq!(value["map"], "SSs.p");
        assert_eq!((&value["regions_2m"], &value["superpages_2m"]), (&json!(4), &json!(2)));
    }

    #[test]
    fn a_piece_out_of_place_or_over_the_end_is_refused() {
        let mut survey = Survey::default();
        let mut misplaced = |piece| match survey.take(4, piece) {
            Heard::Answer(Err(Misplaced { expected, got })) => (expected, got),
            _ => panic!("taken"),
        };
        assert_eq!(misplaced(piece(1, &[1])), (0, 1));
        assert_eq!(misplaced(piece(0, &[1; 5])), (0, 0));
        assert_eq!(misplaced(piece(0, &[9])), (0, 0));
        assert_eq!(misplaced(piece(0, &[])), (0, 0));
    }

    #[test]
    fn a_guest_that_ends_inside_a_region_has_that_region() {
        assert_eq!(nr_regions(Gfn::new(512)), 1);
        assert_eq!(nr_regions(Gfn::new(513)), 2);
    }
}
