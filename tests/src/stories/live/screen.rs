//! A guest's screen, as its device model draws it, and its serial port, which the device model emulates.

use crate::story::{Stage, Telling, ensure};

/// Fewest bytes of a picture that are not black: what the guest's init leaves on its screen has many more.
const MIN_LIT_BYTES: usize = 10_000;

/// Has the device model write the screen to a file; QMP is a line of JSON each way (QEMU's `docs/interop/qmp-spec`),
/// and `libxenstat`'s socket is the one that xl does not use itself.
const DUMP: &str = r#"
dump() {
    rm -f "$2"
    printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"screendump","arguments":{"filename":"'"$2"'"}}' |
        nc.openbsd -U -q 2 "/var/run/xen/qmp-libxenstat-$(xl domid "$1")"
    [ -s "$2" ]
}"#;

/// Keeps the guest's picture under a name; it must not be black.
pub(super) fn dump(stage: &Stage, guest: &str, name: &str) -> Telling {
    let said = stage.sh(&format!("{DUMP}\ndump {guest} /run/{name}.ppm"))?;
    let nr_lit = stage.sh(&format!("tr -d '\\0' </run/{name}.ppm | wc -c"))?.parse().unwrap_or(0);
    ensure(nr_lit >= MIN_LIT_BYTES, || {
        format!("the screen is black but for {nr_lit} bytes; QMP said\n{said}")
    })
}

/// Both pictures are the same.
pub(super) fn expect_same(stage: &Stage, before: &str, after: &str) -> Telling {
    let outcome = stage.run(&format!(
        "cmp -l /run/{before}.ppm /run/{after}.ppm | wc -l; head -c 15 /run/{after}.ppm | tr '\\n' ' '; wc -c </run/{after}.ppm"
    ))?;
    let mut lines = outcome.text.lines();
    let nr_other = lines.next().unwrap_or_default().trim();
    ensure(nr_other == "0", || format!("{nr_other} bytes of the screen are others"))?;
    stage.say(format!("the screen is the same: {}", lines.next().unwrap_or_default()));
    Ok(())
}

/// The guest's kernel answers `xl sysrq` on its serial port: each character of it is a request to the device model
/// through the ioreq page.
pub(super) fn expect_serial(stage: &Stage, guest: &str) -> Telling {
    stage.sh(&format!(
        "xl sysrq {guest} h
         for i in $(seq 100); do grep -q 'sysrq: HELP' /var/log/xen/serial-{guest}.log && exit; sleep 0.1; done
         tail -n 5 /var/log/xen/serial-{guest}.log; exit 1"
    ))
    .map(drop)
}
