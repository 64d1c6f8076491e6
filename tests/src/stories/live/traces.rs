//! What a migration may leave behind in dom0 and Xen, but for the guest that it moves.

use crate::story::{Stage, Telling, ensure};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Longest time for the toolstack's own daemons to clean up behind a failure, and for a stub that nobody pairs to end.
const PATIENCE: Duration = Duration::from_secs(150);

/// While guests run, Xen's free memory wavers by a page or two: its small allocations of many domains share pages. So
/// the exact measure is taken when none is left; in between, a page lost each time would soon be more than this.
const SLACK_KIB: u64 = 16;

/// Domains, their directories in xenstore, their vifs, processes of xl and stubctl, event channels of dom0; a line each.
const LOOK: &str = "\
    xl list | awk 'NR > 1 { print \"domain\", $1, $2 }'
    xenstore-list /local/domain | sort | sed 's/^/directory /'
    xenstore-list /libxl | sort | sed 's/^/libxl /'
    xenstore-ls -f /local/domain/0/backend | sed -n 's| = .*||; s|^/local/domain/0/backend/\\([a-z0-9]*/[0-9]*/[0-9]*\\)$|backend \\1|p'
    ls /sys/class/net | sed -n '/^vif/s/^/interface /p'
    ps -o pid,args | awk '$2 ~ /(xl|stubctl|libxl-save-helper|nest-gate)$/ { print \"process\", $0 }'
    echo \"event channels: $(lsevtchn 0 | wc -l)\"";

/// What is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Traces {
    lines: BTreeSet<String>,
    free_kib: u64,
}

impl Traces {
    /// Looks now, once free memory has settled.
    pub(super) fn take(stage: &Stage) -> Telling<Self> {
        let free_kib = stage.settled_free_kib()?;
        Ok(Self { lines: settled_look(stage)?, free_kib })
    }

    /// Looks again at a guest that has moved, whose domain is another one now; memory must be as free as it was, and
    /// that remains the measure.
    pub(super) fn take_moved(&mut self, stage: &Stage) -> Telling {
        stage.expect_nearly_free(self.free_kib, SLACK_KIB)?;
        self.lines = settled_look(stage)?;
        Ok(())
    }

    /// Of a guest that has suspended and was resumed, the daemon that watched over it may be gone: in Xen 4.17 `xl` takes
    /// a suspension for the guest's end (`handle_domain_death` in `tools/xl/xl_vmcontrol.c`).
    pub(super) fn excuse_watcher(&mut self, stage: &Stage) -> Telling {
        let now = look(stage)?;
        self.lines.retain(|line| !is_watcher(line) || now.contains(line));
        Ok(())
    }

    /// Waits until all is as it was.
    pub(super) fn expect_same(&self, stage: &Stage) -> Telling {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = look(stage)?;
            if now == self.lines {
                return stage.expect_nearly_free(self.free_kib, SLACK_KIB);
            }
            ensure(Instant::now() < deadline, || {
                let more: Vec<_> = now.difference(&self.lines).cloned().collect();
                let less: Vec<_> = self.lines.difference(&now).cloned().collect();
                format!("left behind: {more:?}; gone: {less:?}")
            })?;
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

/// What is the same after half a second: the processes of a migration that has ended may take a moment.
fn settled_look(stage: &Stage) -> Telling<BTreeSet<String>> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = look(stage)?;
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = look(stage)?;
        if now == last {
            return Ok(now);
        }
        ensure(Instant::now() < deadline, || format!("dom0 does not settle: {last:?}, {now:?}"))?;
        last = now;
    }
}

/// The daemon that `xl create` or `xl migrate-receive` left behind for a guest; a stub's names the stub's config.
fn is_watcher(line: &str) -> bool {
    line.starts_with("process ")
        && (line.contains("/etc/xen/stubdom/guests/") || line.ends_with(" migrate-receive"))
}

fn look(stage: &Stage) -> Telling<BTreeSet<String>> {
    Ok(stage.sh(LOOK)?.lines().map(str::to_owned).collect())
}
