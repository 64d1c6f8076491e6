//! A worker of watch: takes lots of frames out of use, one lot after another, until its standard input is closed.
//!
//! **Takes** lots, a line each. **Gives** an answer for each frame, a line each. **Never** outlives watch by more than what
//! a guest needs to be put right: its standard input is closed when watch ends, however that comes.
//!
//! A guest's stub is started once for all its frames of all lots.

use super::lot::{Lot, answer_line};
use crate::cli::OfflineArguments;
use crate::error::Error;
use crate::host::{Host, say};
use crate::offline::Offliner;
use std::io::{self, BufRead};

/// `stubctl retire`: serves a watch.
///
/// # Errors
/// Xen does not say which version it is, or what comes is no lot.
pub(crate) fn run(host: &Host) -> Result<(), Error> {
    match serve(host) {
        Err(error) if error.is_stop() => {
            log::warn!(
                "stopped by watch, or watch is gone: the frame at hand is not done, its guest is as it was"
            );
            Ok(())
        }
        served => served,
    }
}

fn serve(host: &Host) -> Result<(), Error> {
    let mut offliner = Offliner::new(host, OfflineArguments::default())?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let Some(lot) = Lot::parse(&line) else {
            return Err(io::Error::other(format!("expected a lot of frames, got {line:?}")).into());
        };
        offliner.split(lot.is_split);
        offliner.offline_all(&lot.mfns, |verdict| say(&answer_line(&verdict)))?;
    }
    Ok(())
}
