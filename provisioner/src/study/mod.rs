//! The course: weeks of exercises that a learner works through on a lab of their own.
//!
//! An exercise is [data](course), [read](load) and [proven sound](lint) before it is used. It brings a [lab](desk) into a
//! known state; each of its steps says what to do and why, and asks [checks](check) about the [state](snapshot) that the step
//! leads to. What the prose states is [measured](fact) when it is printed. The [walk] is for people, the [proof] for CI.

pub mod check;
pub mod course;
pub mod desk;
pub mod fact;
pub mod lint;
pub mod load;
pub mod phrases;
pub mod progress;
pub mod prompt;
pub mod proof;
pub mod show;
pub mod snapshot;
pub mod text;
pub mod typist;
pub mod walk;
