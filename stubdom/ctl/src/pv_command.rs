//! Exchange of frames of a PV guest as a command of its own.

use crate::cli::PvExchangeArguments;
use crate::error::Error;
use crate::host::Host;
use crate::pv_exchange::{self, Outcome};
use serde_json::json;
use xen_front::types::{Domid, Mfn};

/// `PG_OFFLINE_STATUS_OFFLINED`.
const OFFLINED: u32 = 1 << 1;

/// Marks the frames, exchanges them, prints a line for each.
pub(crate) fn run(host: &Host, arguments: &PvExchangeArguments) -> Result<(), Error> {
    let mfns: Vec<Mfn> = arguments.mfns.iter().copied().map(Mfn::new).collect();
    for mfn in &mfns {
        host.xen.mark_offline(*mfn)?;
    }
    let report = pv_exchange::run(host, Domid::new(arguments.domid), &mfns)?;
    for (mfn, outcome) in &report.frames {
        let state = if host.xen.offline_status(*mfn)? & OFFLINED != 0 { "offline" } else { "pending" };
        let stood = report.stood.map(|stood| stood.as_micros());
        if arguments.json {
            println!("{}", line(*mfn, outcome, state, stood));
        } else {
            match outcome {
                Ok(done) => println!("{mfn}: exchanged for {}: {}; {state}", done.new, done.pfn),
                Err(error) => println!("{mfn}: refused ({}): {error}; {state}", error.name()),
            }
        }
    }
    Ok(())
}

/// A line for scripts; `pause_us` is of all frames together.
fn line(mfn: Mfn, outcome: &Outcome, state: &str, pause_us: Option<u128>) -> serde_json::Value {
    match outcome {
        Ok(done) => json!({
            "mfn": mfn.raw(), "result": "done", "reason": "exchanged", "pfn": done.pfn.raw(),
            "new_mfn": done.new.raw(), "entries": done.nr_entries, "table_level": done.level,
            "state": state, "pause_us": pause_us,
        }),
        Err(error) => json!({
            "mfn": mfn.raw(), "result": "refused", "reason": error.name(), "text": error.to_string(),
            "state": state, "pause_us": pause_us,
        }),
    }
}
