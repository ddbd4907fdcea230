//! Both control machines against each other, and each against nonsense.

mod beginning;
mod common;
mod floods;
mod rules;
mod session;
mod updates;
