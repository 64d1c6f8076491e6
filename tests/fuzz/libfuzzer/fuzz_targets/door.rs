//! One door under libFuzzer: the one that `FUZZ_DOOR` names.
#![no_main]

use fuzz::{DOORS, Door};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static DOOR: LazyLock<Door> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_DOOR").unwrap_or_default();
    let door = DOORS.iter().find(|door| door.name == name);
    // A fake stub dies by a panic that its body catches: libFuzzer's hook would end the process. It ends for any that a body
    // does not catch.
    let _ = std::panic::take_hook();
    *door.unwrap_or_else(|| panic!("expected the name of a door in FUZZ_DOOR, got \"{name}\""))
});

fuzz_target!(|input: &[u8]| (DOOR.body)(input));
