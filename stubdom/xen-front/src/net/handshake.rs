//! What a network front end does next, given both ends' states (`xen/include/public/io/xenbus.h`).
//!
//! The life of a vif as Linux's netback lives it: it waits in InitWait for our rings, connects when we say Connected,
//! and goes through Closing to Closed when the toolstack unplugs it or its driver goes away. A driver that comes back
//! starts in Initialising and wants to see us there too.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

use xen_abi::xenbus::State;

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing, until the back end moves.
    Wait,
    /// Say that we are there (Initialising).
    Start,
    /// Make rings and say where they are (Connected).
    Connect,
    /// Frames can flow.
    Up,
    /// Take the rings away and say so (Closed).
    Disconnect,
}

/// What is known about both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    /// We have rings that the back end may use.
    pub(super) linked: bool,
    /// Our state in xenstore.
    pub(super) ours: State,
    /// The back end's state; `None` when there is no back end.
    pub(super) theirs: Option<State>,
    /// The toolstack wants the device to stay (`online` of the back end).
    pub(super) online: bool,
}

impl Ends {
    pub(super) fn action(self) -> Action {
        let Some(theirs) = self.theirs else {
            return if self.linked { Action::Disconnect } else { Action::Wait };
        };
        match theirs {
            State::Connected if self.linked => Action::Up,
            State::InitWait | State::Initialised | State::Connected if self.linked => Action::Wait,
            _ if self.linked => Action::Disconnect,
            State::InitWait if self.ours == State::Initialising => Action::Connect,
            State::Closing if self.ours != State::Closed => Action::Disconnect,
            State::Initialising | State::InitWait if self.ours != State::Initialising => Action::Start,
            State::Closed if self.ours != State::Initialising && self.online => Action::Start,
            _ => Action::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(linked: bool, ours: State, theirs: State) -> Action {
        Ends { linked, ours, theirs: Some(theirs), online: true }.action()
    }

    #[test]
    fn a_plugged_vif_connects_and_comes_up() {
        assert_eq!(next(false, State::Initialising, State::Initialising), Action::Wait);
        assert_eq!(next(false, State::Initialising, State::InitWait), Action::Connect);
        assert_eq!(next(true, State::Connected, State::InitWait), Action::Wait);
        assert_eq!(next(true, State::Connected, State::Connected), Action::Up);
    }

    #[test]
    fn an_unplugged_vif_is_closed_and_left_alone() {
        assert_eq!(next(true, State::Connected, State::Closing), Action::Disconnect);
        assert_eq!(next(false, State::Closed, State::Closing), Action::Wait);
        let gone = Ends { linked: false, ours: State::Closed, theirs: Some(State::Closed), online: false };
        assert_eq!(gone.action(), Action::Wait);
        assert_eq!(Ends { theirs: None, ..gone }.action(), Action::Wait);
        assert_eq!(Ends { theirs: None, linked: true, ..gone }.action(), Action::Disconnect);
    }

    #[test]
    fn a_vif_unplugged_before_it_connected_is_closed_too() {
        assert_eq!(next(false, State::Initialising, State::Closing), Action::Disconnect);
    }

    #[test]
    fn a_driver_that_comes_back_is_greeted() {
        assert_eq!(next(true, State::Connected, State::Closed), Action::Disconnect);
        assert_eq!(next(false, State::Closed, State::Closed), Action::Start);
        assert_eq!(next(false, State::Initialising, State::Closed), Action::Wait);
        assert_eq!(next(false, State::Closed, State::Initialising), Action::Start);
        assert_eq!(next(false, State::Closed, State::InitWait), Action::Start);
        assert_eq!(next(true, State::Connected, State::Initialising), Action::Disconnect);
    }
}
