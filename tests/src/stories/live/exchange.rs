//! Questions and answers over one TCP connection between dom0 and a guest, while something happens to the guest.

use crate::story::{Stage, Stop, Telling, ensure};

const SCRIPT: &str = "/run/exchange.sh";
const LOG: &str = "/run/exchange.log";
const STOP: &str = "/run/exchange.stop";

/// Sends numbers, one after the other's answer, and notes when each answer came; ends with "done" when all was right.
const ASK: &str = r#"
exec 3<>"/dev/tcp/$1/7" || exit
n=0
while [ ! -e /run/exchange.stop ]; do
    n=$((n + 1))
    echo "$n" >&3
    read -r -t 200 -u 3 answer || { echo "no answer to $n"; exit 1; }
    [ "$answer" = "$n" ] || { echo "expected $n, got $answer"; exit 1; }
    echo "$EPOCHREALTIME"
    sleep 0.05
done
echo done
"#;

/// An exchange that runs.
#[derive(Debug)]
pub(super) struct Exchange;

impl Exchange {
    /// Starts it and waits for the first answer.
    pub(super) fn start(stage: &Stage, address: &str) -> Telling<Self> {
        stage.sh(&format!("rm -f {LOG} {STOP}; cat >{SCRIPT} <<'END'\n{ASK}END"))?;
        stage.sh(&format!("setsid bash {SCRIPT} {address} >{LOG} 2>&1 </dev/null &"))?;
        stage.sh(&format!("for i in $(seq 100); do [ -s {LOG} ] && exit; sleep 0.2; done; exit 1"))?;
        Ok(Self)
    }

    /// Ends it; gives a word on the number of answers and the longest time between two.
    ///
    /// # Errors
    /// An answer was wrong or did not come.
    pub(super) fn finish(self, stage: &Stage) -> Telling<String> {
        let nr_before = times(&stage.sh(&format!("cat {LOG}"))?).len();
        stage.sh("sleep 2")?;
        let text = stage.sh(&format!(
            "touch {STOP}; for i in $(seq 100); do tail -n 1 {LOG} | grep -q '[a-z]' && break; sleep 0.2; done; cat {LOG}"
        ))?;
        let last = text.lines().next_back().unwrap_or_default();
        ensure(last == "done", || format!("the exchange ended with {last:?}"))?;
        let times = times(&text);
        ensure(times.len() > nr_before, || format!("no answer after the first {nr_before}"))?;
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        let gap = gaps.max_by(f64::total_cmp).ok_or_else(|| Stop::Failure("one answer only".into()))?;
        Ok(format!("{} answers over one connection, the longest wait {gap:.1} s", times.len()))
    }
}

fn times(log: &str) -> Vec<f64> {
    log.lines().filter_map(|line| line.parse().ok()).collect()
}
