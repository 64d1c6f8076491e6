//! What `stubctl status --watch` shows while a guest migrates: a bar for a person, a line of JSON a second for a machine.

use crate::error::Doing;
use crate::story::{Stage, Telling, ensure};
use serde_json::Value;

/// A watch that goes on.
#[derive(Debug)]
pub(super) struct Watched;

impl Watched {
    /// Starts both.
    pub(super) fn start(stage: &Stage) -> Telling<Self> {
        Self::end(stage)?; // those of a guest that fell by itself
        stage.sh(
            "for json in '' --json; do
                 setsid stubctl status --watch $json >/run/watched$json 2>&1 </dev/null & echo $! >/run/watched$json.pid
             done",
        )?;
        Ok(Self)
    }

    /// Ends both, if they are there.
    pub(super) fn end(stage: &Stage) -> Telling {
        stage
            .sh("kill $(cat /run/watched.pid /run/watched--json.pid 2>/dev/null) 2>/dev/null; rm -f /run/watched*.pid")
            .map(drop)
    }

    /// Ends both; gives the last bar on which something moved.
    ///
    /// # Errors
    /// No rate, no pass, no estimate was shown.
    pub(super) fn finish(self, stage: &Stage) -> Telling<String> {
        stage.sh(
            "kill $(cat /run/watched.pid /run/watched--json.pid); rm /run/watched.pid /run/watched--json.pid",
        )?;
        expect_lines(&stage.sh("cat /run/watched--json")?)?;
        let shown = stage.sh("cat /run/watched")?;
        let bars: Vec<_> = shown.lines().map(str::trim).filter(|line| line.starts_with("[#")).collect();
        let has = |part: &str| bars.iter().any(|bar| bar.contains(part) && bar.contains(" KiB/s"));
        ensure(has("to the end of the pass"), || format!("no bar with an estimate in\n{shown}"))?;
        ensure(has("pages again"), || format!("no bar that tells of pages that come again in\n{shown}"))?;
        let moved = bars.iter().rfind(|bar| !bar.contains(" 0 KiB/s"));
        Ok(moved.copied().unwrap_or_default().to_owned())
    }
}

/// Every line is an array; rates, and pages that come again in a later pass, are in some.
fn expect_lines(text: &str) -> Telling {
    let parsed: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
    let looks = parsed.doing("reading stubctl's lines of JSON")?;
    let rows: Vec<&Value> = looks.iter().filter_map(Value::as_array).flatten().collect();
    for (key, pass) in [("bytes_per_s", 1), ("pages_again", 2)] {
        let shown = rows.iter().any(|row| row["pass"].as_u64() >= Some(pass) && row[key].as_u64() > Some(0));
        ensure(shown, || format!("no {key} in pass {pass} or later in\n{text}"))?;
    }
    Ok(())
}
