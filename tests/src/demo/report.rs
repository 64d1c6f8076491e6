//! The report for machines.

use super::{GUEST_MIB, Seen};
use crate::error::{Doing, Result};
use crate::place::Place;
use control::RegionKind;
use serde_json::{Value, json};
use std::fs;

/// Seconds to the millisecond.
fn seconds(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Everything as one value.
pub(super) fn json(place: &Place, all: &[Seen]) -> Result<Value> {
    let image = fs::metadata(place.repo("target/stub/stubdom")).doing("measuring the stub's image")?;
    let configuration =
        fs::read_to_string(place.repo("xen-config/stubdom.cfg")).doing("reading the stub's config")?;
    let guests: Vec<Value> = all.iter().map(guest).collect();
    Ok(json!({
        "guests": guests,
        "stub_image_bytes": image.len(),
        "stub_memory_mib": memory_of(&configuration),
    }))
}

fn guest(seen: &Seen) -> Value {
    let equal = [&seen.stock, &seen.stub].iter().all(|restored| restored.checksum == seen.checksum);
    let superpages = |survey: &crate::survey::Survey| survey.count(RegionKind::Superpage);
    json!({
        "type": seen.guest.split('-').next(),
        "mem_mib": GUEST_MIB,
        "fresh_2m": superpages(&seen.fresh),
        "regions_2m": seen.fresh.nr_whole(),
        "stock": {
            "seconds": seconds(seen.stock.seconds),
            "superpages_2m": superpages(&seen.stock.survey),
            "superpages_1g": seen.stock.survey.nr_contiguous_1g,
            "hypercalls": seen.stock.dom0_calls,
        },
        "stub": {
            "seconds": seconds(seen.stub.seconds),
            "superpages_2m": superpages(&seen.stub.survey),
            "superpages_1g": seen.stub.survey.nr_contiguous_1g,
            "hypercalls": seen.stub_report["hypercalls"],
            "dom0_hypercalls": seen.stub.dom0_calls,
        },
        "exchange": {
            "stock_done": seen.exchanged.is_stock_done,
            "outcome": seen.exchanged.report["outcome"],
            "pause_us": seen.exchanged.report["pause_us"],
        },
        "checksum_equal": equal,
    })
}

/// The value of `memory = N` in an xl configuration, in MiB.
fn memory_of(configuration: &str) -> Option<u64> {
    let values = configuration
        .lines()
        .filter_map(|line| line.split_once('=').filter(|(key, _)| key.trim() == "memory"));
    values.filter_map(|(_, value)| value.trim().parse().ok()).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stubs_memory_is_read_from_its_configuration() {
        assert_eq!(memory_of("# memory = 7\nname = \"x\"\nmemory = 16\n"), Some(16));
        assert_eq!(memory_of("maxmemory = 7"), None);
    }
}
