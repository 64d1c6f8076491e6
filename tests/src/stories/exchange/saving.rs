//! An exchange while the guest is being migrated.

use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};

/// Refused until the guest has moved.
pub(in crate::stories) const SAVING: Story = Story {
    name: "exchange-saving",
    proves: "while a guest is being migrated live its frames are refused, the copy that arrives has no wrong byte, and \
             the frame that the domain left behind has no mark over which this Xen could crash",
    options: Options::default,
    tell: saving,
};

const GUEST: &str = "pvh-128";

fn saving(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("stubctl attach {GUEST} && ask-witness {GUEST} rate 2000"))?;
    let mfn = stage.sh(&format!("stubctl locate {GUEST} 0x4005"))?;
    let said = stage.run(&format!(
        "printf '#!/bin/bash\\nexec xl migrate-receive\\n' >/run/receive.sh; chmod +x /run/receive.sh; \
         timeout 200 xl migrate -s '' {GUEST} /run/receive.sh >/run/migrate.log 2>&1 & \
         until pidof libxl-save-helper >/dev/null; do sleep 0.05; done; sleep 0.5; \
         stubctl offline --json {mfn}; echo \"ended with $?\"; wait $!; echo \"xl migrate: $?\""
    ))?;
    let is_refused = said.text.contains("\"being-saved\"") && said.text.contains("ended with 8");
    stage.say(said.text.trim().replace('\n', " / "));
    ensure(is_refused, || format!("expected being-saved: {}", said.text))?;
    ensure(said.text.contains("xl migrate: 0"), || format!("the migration failed: {}", said.text))?;
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    let pages = stage.sh("stubctl pages")?;
    ensure(!pages.contains(&mfn), || format!("{mfn} of the domain that is gone is still marked: {pages}"))?;
    stage.sh(&format!("xl destroy {GUEST}")).map(drop)
}
