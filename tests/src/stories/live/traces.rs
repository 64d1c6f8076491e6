//! What a migration may leave behind in dom0 and Xen, but for the guest that it moves.

use crate::story::{Stage, Telling, ensure};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Longest time for the toolstack's own daemons to clean up behind a failure, and for a stub that nobody pairs to end.
const PATIENCE: Duration = Duration::from_secs(150);

/// While guests run, Xen's free memory wavers by some pages (20 KiB were seen), since small allocations of many domains share
/// them. So the exact measure is taken when none is left; in between, a page lost each time would soon be more than this.
const SLACK_KIB: u64 = 48;

/// Domains, xenstore's nodes, vifs, processes of xl and ours, event channels of dom0, grants that are mapped; a line each.
///
/// Of two domains with one UUID, the first that goes takes `/vm/UUID` along, which is both's (`libxl__destroy_domid`). What a
/// stub writes of its progress is not the same each time.
const LOOK: &str = r#"
    xl list | awk 'NR > 1 { print "domain", $1, $2 }'
    xenstore-ls -f / | sed -n 's| = .*||; \|^/vm/|d; \|/data/status/|d; s|^/|node /|p'
    ls /sys/class/net | sed -n '/^vif/s/^/interface /p'
    ps -o pid,args | awk '$2 ~ /(xl|stubctl|libxl-save-helper|nest-gate)$/ { $1 = ""; print "process" $0 }'
    echo "event channels: $(lsevtchn 0 | wc -l)"
    xl debug-keys g; xl dmesg | awk '/gnttab_usage_print_all \[/ { split("", nr) } /grant-table for remote/ { whose = $5 }
        $2 ~ /^\[0x/ { nr[whose]++ } END { for (whose in nr) print "grants", whose, nr[whose] }'"#;

/// Lines, and how often each is there. The numbers of the guest's domain and of its stub's have given way to words.
type Lines = BTreeMap<String, usize>;

/// What is there.
#[derive(Clone, Debug)]
pub(super) struct Traces {
    guest: &'static str,
    /// The number of the guest's domain, where it has one.
    domid: Option<String>,
    lines: Lines,
    free_kib: u64,
    /// What was there when the guest had moved for the first time, by whether its stub has a vif.
    moved: BTreeMap<bool, Lines>,
}

impl Traces {
    /// Looks now, once free memory has settled.
    pub(super) fn take(stage: &Stage, guest: &'static str) -> Telling<Self> {
        let free_kib = stage.settled_free_kib()?;
        let (domid, lines) = settled_look(stage, guest)?;
        Ok(Self { guest, domid, lines, free_kib, moved: BTreeMap::new() })
    }

    /// Looks again at a guest that has moved, whose domain is another one now: there must be the same as when it had moved
    /// for the first time in this way, and as much free memory.
    pub(super) fn take_moved(&mut self, stage: &Stage) -> Telling {
        stage.expect_nearly_free(self.free_kib, SLACK_KIB)?;
        let (domid, lines) = settled_look(stage, self.guest)?;
        let has_vif = lines.keys().any(|line| line.starts_with("interface vifSTUB."));
        let first = self.moved.entry(has_vif).or_insert_with(|| lines.clone());
        if lines != *first {
            let first = first.clone();
            wait_for(stage, self.guest, |_, now| *now == first, |now| differences(&first, now))?;
            return self.take_moved(stage);
        }
        (self.domid, self.lines) = (domid, lines);
        Ok(())
    }

    /// Of a guest that has suspended and was resumed, the daemon that watched over it may be gone: in Xen 4.17 `xl` takes
    /// a suspension for the guest's end (`handle_domain_death` in `tools/xl/xl_vmcontrol.c`).
    pub(super) fn excuse_watcher(&mut self, stage: &Stage) -> Telling {
        let (_, now) = look(stage, self.guest)?;
        self.lines.retain(|line, _| !is_watcher(line) || now.contains_key(line));
        Ok(())
    }

    /// Waits until all is as it was, the guest's domain too.
    pub(super) fn expect_same(&self, stage: &Stage) -> Telling {
        let is_same = |domid: &Option<String>, now: &Lines| *domid == self.domid && *now == self.lines;
        wait_for(stage, self.guest, is_same, |now| differences(&self.lines, now))?;
        stage.expect_nearly_free(self.free_kib, SLACK_KIB)
    }
}

/// What came and what went.
fn differences(before: &Lines, now: &Lines) -> String {
    let only = |these: &Lines, those: &Lines| {
        let other = these.iter().filter(|(line, count)| those.get(*line) != Some(*count));
        other.map(|(line, count)| format!("{count} x {line}")).collect::<Vec<_>>().join("; ")
    };
    format!("left behind: [{}]; gone: [{}]", only(now, before), only(before, now))
}

/// Looks until it is right.
fn wait_for(
    stage: &Stage,
    guest: &str,
    is_right: impl Fn(&Option<String>, &Lines) -> bool,
    wrong: impl Fn(&Lines) -> String,
) -> Telling {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (domid, now) = look(stage, guest)?;
        if is_right(&domid, &now) {
            return Ok(());
        }
        ensure(Instant::now() < deadline, || format!("{guest} is domain {domid:?}; {}", wrong(&now)))?;
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What is the same after half a second: the processes of a migration that has ended may take a moment.
fn settled_look(stage: &Stage, guest: &str) -> Telling<(Option<String>, Lines)> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = look(stage, guest)?;
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = look(stage, guest)?;
        if now == last {
            return Ok(now);
        }
        ensure(Instant::now() < deadline, || {
            format!("dom0 does not settle: {}", differences(&last.1, &now.1))
        })?;
        last = now;
    }
}

/// The daemon that `xl create` or `xl migrate-receive` left behind for a guest; a stub's names the stub's config.
fn is_watcher(line: &str) -> bool {
    line.starts_with("process ")
        && (line.contains("/etc/xen/stubdom/guests/") || line.ends_with(" migrate-receive"))
}

fn look(stage: &Stage, guest: &str) -> Telling<(Option<String>, Lines)> {
    let text = stage.sh(LOOK)?;
    ensure(text.contains("\nnode /local/domain/0/"), || "xenstore shows no node of dom0".into())?;
    Ok(normalised(&text, guest))
}

/// Puts words in the place of the numbers of the guest's domain, which is given too, and of its stub's, and of the stub's name
/// and UUID.
fn normalised(text: &str, guest: &str) -> (Option<String>, Lines) {
    let domain = |is_it: &dyn Fn(&str) -> bool| {
        let mut domains = text.lines().filter_map(|line| line.strip_prefix("domain ")?.split_once(' '));
        domains.find(|(name, _)| is_it(name)).map(|(name, id)| (name.to_owned(), id.to_owned()))
    };
    let domid = domain(&|name| name == guest).map(|(_, id)| id);
    let (stub_name, stub) = domain(&|name| name.starts_with(&format!("{guest}-stubdom-"))).unzip();
    let ids = [(domid.as_deref(), "GUEST"), (stub.as_deref(), "STUB")];
    let mut lines = Lines::new();
    for line in text.lines() {
        let line = stub_name.as_ref().map_or(line.to_owned(), |name| line.replace(name, "STUB'S NAME"));
        let line = without_uuid(&line);
        let line =
            ids.iter().fold(line, |line, (id, word)| id.map_or(line.clone(), |id| renamed(&line, id, word)));
        *lines.entry(line).or_default() += 1;
    }
    (domid, lines)
}

/// A line whose UUID, which is another for each stub, is a word.
fn without_uuid(line: &str) -> String {
    let parts = line.split_once(" uuid=\"").and_then(|(head, rest)| Some((head, rest.split_once('"')?.1)));
    parts.map_or(line.to_owned(), |(head, tail)| format!("{head} uuid=UUID{tail}"))
}

/// A line with a word in the place of a domain's number.
fn renamed(line: &str, id: &str, word: &str) -> String {
    match line.split_once(' ') {
        Some(("domain", rest)) if rest.ends_with(&format!(" {id}")) => {
            format!("domain {}{word}", rest.trim_end_matches(id))
        }
        Some(("node", path)) => {
            let parts: Vec<&str> = path.split('/').map(|part| if part == id { word } else { part }).collect();
            format!("node {}", parts.join("/"))
        }
        Some(("interface", _)) => line.replace(&format!("vif{id}."), &format!("vif{word}.")),
        Some(("grants", _)) => line.replace(&format!("grants d{id} "), &format!("grants {word} ")),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "domain pvh-128 7\ndomain pvh-128-stubdom-7 8\nnode /local/domain/7/stubdom\nnode /local/domain/0/backend/vif/8/0\n\
                          interface vif8.0\nprocess xl create -q name=\"pvh-128-stubdom-7\" uuid=\"00010203-4a\" vif=[]\nprocess xl migrate-receive\ngrants d7 2\n\
                          grants d8 4\nevent channels: 30";

    #[test]
    fn a_guest_that_has_moved_leaves_the_same_lines() {
        let after = BEFORE.replace('7', "17").replace('8', "9").replace("129", "128");
        let ((before, lines), (domid, moved)) =
            (normalised(BEFORE, "pvh-128"), normalised(&after, "pvh-128"));
        assert_eq!((before.as_deref(), domid.as_deref()), (Some("7"), Some("17")));
        assert_eq!(lines, moved);
        assert!(lines.contains_key("grants STUB 4") && lines.contains_key("interface vifSTUB.0"));
    }

    #[test]
    fn what_is_left_behind_and_what_is_gone_is_told() {
        let (_, before) = normalised(BEFORE, "pvh-128");
        let after = format!(
            "{}\nprocess xl migrate-receive\ndomain pvh-128--incoming 12",
            BEFORE.replace("grants d7 2\n", "")
        );
        let (_, after) = normalised(&after, "pvh-128");
        let told = differences(&before, &after);
        assert!(
            told.contains("2 x process xl migrate-receive")
                && told.contains("1 x domain pvh-128--incoming 12"),
            "{told}"
        );
        assert!(told.contains("gone: [1 x grants GUEST 2;"), "{told}");
    }
}
