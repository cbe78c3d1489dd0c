//! `lab`: [lab files](lab) become a [plan], a [provider](netns) carries the plan out, the [deployment](deploy) fills the cluster.

mod access;
mod capturing;
pub mod cli;
pub mod compare;
pub mod deploy;
pub mod error;
pub mod forward;
pub mod lab;
pub mod measure;
pub mod netns;
pub mod node;
pub mod plan;
pub mod progress;
pub mod record;
pub mod routes;
pub mod state;
pub mod study;
pub mod trace;
pub mod vagrant;
