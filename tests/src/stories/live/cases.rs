//! What can go wrong on the way of a live migration.

/// How many of the cases, from the first, the short story tells: those that differ most and leave a guest without a stub
/// where it was.
pub(super) const NR_SHORT: usize = 4;

/// Something that breaks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Where in the stream, as nest-gate names it.
    pub(super) at: &'static str,
    /// What is done there, in bash.
    pub(super) deed: &'static str,
    /// What the operator reads.
    pub(super) told: &'static str,
    /// What undoes the deed, in bash, with `$guest`; it ends with another exit code than 0 when something is wrong.
    pub(super) undo: &'static str,
    /// The one transport of which it can be told, if it is one.
    pub(super) only: Option<&'static str>,
    pub(super) end: End,
}

/// How a case ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The source runs on.
    Stays,
    /// The migration succeeds all the same.
    Moves,
}

impl Case {
    /// Whether the guest may have suspended by then; the sender may be ahead of the place by what is under way between two
    /// hosts.
    pub(super) fn may_be_behind_suspend(&self) -> bool {
        matches!(self.at, "precopy" | "state" | "end" | "after")
    }
}

/// Fills Xen's memory with a domain that sleeps, but for some MiB. Its page tables take 4 KiB a MiB, and a MiB for its
/// vCPU (`libxl__get_required_paging_memory`); what Xen keeps for it besides comes out of what is left.
macro_rules! hog {
    ($left_mib:literal) => {
        concat!(
            "m=$((($(xl info free_memory) - 1 - ",
            $left_mib,
            ") * 256 / 257)); xl create -p -q /etc/xen/stubdom/guests/pvh-128.cfg 'name=\"hog\"' memory=$m maxmem=$m"
        )
    };
}

const fn stays(name: &'static str, at: &'static str, deed: &'static str, told: &'static str) -> Case {
    Case { name, at, deed, told, undo: "", only: None, end: End::Stays }
}

const fn moves(
    name: &'static str,
    at: &'static str,
    deed: &'static str,
    told: &'static str,
    undo: &'static str,
) -> Case {
    Case { name, at, deed, told, undo, only: None, end: End::Moves }
}

const fn stays_by_tcp(name: &'static str, deed: &'static str, told: &'static str) -> Case {
    Case { name, at: "memory", deed, told, undo: "", only: Some("tcp"), end: End::Stays }
}

const fn stays_hogged(name: &'static str, at: &'static str, deed: &'static str, told: &'static str) -> Case {
    Case { undo: "xl destroy hog", ..stays(name, at, deed, told) }
}

pub(super) const CASES: &[Case] = &[
    stays("stub crashes in memory", "page", "xl sysrq $stub c", "its last words are in"),
    stays("relay killed in memory", "memory", "kill -9 $helper", "died due to fatal signal Killed"),
    stays(
        "receiver killed in memory",
        "memory",
        "kill -9 $receiver",
        "the toolstack that asked for this is gone",
    ),
    stays("stub hangs in memory", "memory", "xl pause $stub", "the stub did not answer within 3 s"),
    stays_by_tcp("connection cut in memory", "ss -K dport = 8002", "expected more up to the END record"),
    stays_hogged("no memory for the rest", "memory", hog!(8), "Xen has no memory for"),
    moves(
        "no room for logs",
        "context",
        "dd if=/dev/zero of=/var/log/xen/full bs=64k 2>/dev/null",
        "Migration successful",
        "rm /var/log/xen/full",
    ),
    stays("stub destroyed in memory", "memory", "xl destroy $stub", "its last words are in"),
    stays(
        "sender killed in memory",
        "memory",
        "kill -9 $(ps -o pid,args | awk '$2 ~ /xl$/ && / migrate -s/ { print $1 }')",
        "expected more up to the END record",
    ),
    // The stub loses its connection or stubctl its patience, whichever comes first.
    stays_by_tcp("vif unplugged in memory", "xl network-detach $stub 0", "stubctl: error: "),
    Case {
        name: "vif unplugged and plugged in memory",
        at: "memory",
        deed: "mac=$(xenstore-read /local/domain/0/backend/vif/$stub/0/mac); xl network-detach $stub 0; \
               xl network-attach $stub bridge=xenstub0 mac=$mac; sleep 1",
        told: "Migration successful",
        undo: "",
        only: Some("tcp"),
        end: End::Moves,
    },
    // A stub takes 16 MiB.
    stays_hogged(
        "no memory for the stub",
        "context",
        hog!(6),
        "MiB of this host's memory are free, expected",
    ),
    moves("no memory once it is here", "state", hog!(4), "Migration successful", "xl destroy hog"),
    moves(
        "no room for the report",
        "headers",
        "mkdir -p /var/lib/xen-stubdom/reports; mount -t tmpfs -o size=4k none /var/lib/xen-stubdom/reports; \
         dd if=/dev/zero of=/var/lib/xen-stubdom/reports/full bs=4k count=1 2>/dev/null",
        "cannot write the report",
        "! ls /var/lib/xen-stubdom/reports/*.json.* 2>/dev/null; code=$?; umount /var/lib/xen-stubdom/reports; exit $code",
    ),
    Case {
        name: "relay and receiver killed in memory",
        at: "memory",
        deed: "kill -9 $receiver $helper",
        told: "Migration failed",
        undo: STUB_ENDS,
        only: None,
        end: End::Stays,
    },
    Case {
        name: "receiver killed behind END",
        at: "after",
        deed: "kill -9 $receiver",
        told: "Migration failed",
        // Complete, paused, and nobody's: the stock helper leaves it too. A stubctl that is not quite done destroys it.
        undo: "! xl domid $guest--incoming || xl destroy $guest--incoming",
        only: None,
        end: End::Stays,
    },
    stays("stub destroyed before the stream", "headers", SETTLED_DESTROY, "its last words are in"),
    stays("stub destroyed in a later pass", "precopy", "xl destroy $stub", "its last words are in"),
    stays("stub destroyed at its state", "state", "xl destroy $stub", "its last words are in"),
    stays("stub crashes before END", "end", "xl sysrq $stub c", "its last words are in"),
    stays("stub hangs before END", "end", "xl pause $stub", "the stub did not answer within 3 s"),
    stays("relay killed before END", "end", "kill -9 $helper", "died due to fatal signal Killed"),
    stays("relay killed at its start", "headers", "kill -9 $helper", "died due to fatal signal Killed"),
    stays("relay stopped by a signal", "memory", "kill $helper", "aborted by a signal"),
];

/// With nobody of ours alive in dom0, the stub has to end by itself; the target is left, as behind the stock helper.
const STUB_ENDS: &str = "stub=$(xenstore-read /local/domain/$(xl domid $guest--incoming)/stubdom) || exit; \
     for i in $(seq 300); do xl list $stub >/dev/null 2>&1 || break; sleep 0.2; done; \
     if xl list $stub; then echo the stub did not end; exit 1; fi; xl destroy $guest--incoming";

/// The stub comes into being while the stream waits; it goes when stubctl has connected to it, by when it may have seen that.
const SETTLED_DESTROY: &str = "until stub=$(xenstore-read /local/domain/$target/stubdom 2>/dev/null); do sleep 0.1; done; \
     until xenstore-read /local/domain/$stub/data/status/phase 2>/dev/null | grep -qx -e listening -e opening; do sleep 0.1; done; \
     ! grep -q tcp /etc/xen/stubdom/$guest.conf || until ss -Htn dport = 8002 | grep -q ESTAB; do sleep 0.1; done; \
     sleep 0.5; xl destroy $stub";
