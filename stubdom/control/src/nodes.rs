//! The xenstore nodes through which stub and dom0 find each other and show coarse state.
//!
//! Everything below `data/` belongs to the stub, which writes it for monitoring only: dom0 shows these values and
//! decides nothing by them. The two links belong to dom0.

/// Directory of the coarse state, below the stub's own `/local/domain/<stub>/`; removed and made anew by each stub.
pub const STATUS: &str = "data/status";

/// [`Phase::as_str`](crate::Phase::as_str) of the stub.
pub const PHASE: &str = "data/status/phase";

/// Stream bytes taken in the current or last receive, decimal.
pub const BYTES: &str = "data/status/bytes";

/// Pages filled in the current or last receive, repeats counted, decimal.
pub const PAGES: &str = "data/status/pages";

/// Which pass over memory the receive is in, from 1, decimal.
pub const PASS: &str = "data/status/pass";

/// 1 GiB extents that the last receive populated and kept, decimal.
pub const SUPERPAGES_1G: &str = "data/status/superpages-1g";

/// 2 MiB extents that the last receive populated and kept, decimal.
pub const SUPERPAGES_2M: &str = "data/status/superpages-2m";

/// 4 KiB pages that the last receive populated one by one, decimal.
pub const PAGES_4K: &str = "data/status/pages-4k";

/// The text of the last failure; absent when there was none.
pub const ERROR: &str = "data/status/error";

/// Below the *target's* home, written by dom0, readable by the stub: the stub's domid. The stub watches it and ends
/// itself when it goes away: the target is gone then.
pub const STUB_OF_TARGET: &str = "stubdom";

/// Below the *stub's* home, written by dom0: the target's domid. (The name `target` is libxl's for device models.)
pub const TARGET_OF_STUB: &str = "stubdom-target";

/// Below the *target's* home, written by dom0: what stubctl has to put right when an exchange is over. It is there as
/// long as a stubctl has the target in its care.
pub const EXCHANGE_OF_TARGET: &str = "stubdom-exchange";
