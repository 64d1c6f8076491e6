//! The stories, in the order in which they are told.

mod stock;

use crate::story::Story;

/// Every story that `scripts/test` tells.
pub const ALL: &[Story] = &[stock::SAVE_AND_RESTORE];
