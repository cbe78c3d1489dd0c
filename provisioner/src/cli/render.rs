//! `lab render`: the lab for Vagrant.

use clap::Args;

use super::lifecycle::DEFAULT_LAB;
use super::{Ended, print_text};
use crate::lab::Lab;
use crate::vagrant::{self, Options};

/// The Vagrantfile of a lab, on standard output.
#[derive(Args)]
pub(super) struct Render {
    /// A built-in lab's name, or the path of a lab file or of its directory
    #[arg(default_value = DEFAULT_LAB)]
    lab: String,
    /// Name the lab otherwise, to run the same one twice
    #[arg(long)]
    name: Option<String>,
    /// The box that the machines are made of
    #[arg(long = "box", default_value = vagrant::DEFAULT_BOX, value_name = "BOX")]
    box_name: String,
    /// Its version; default: the newest that is there
    #[arg(long, value_name = "VERSION")]
    box_version: Option<String>,
}

impl Render {
    pub(super) fn run(self) -> Result<(), Ended> {
        let mut lab = Lab::load(&self.lab)?;
        if let Some(name) = &self.name {
            lab.rename(name).map_err(|cause| Ended::Wrong(format!("--name {name:?} {cause}")))?;
        }
        let options = Options { box_name: self.box_name, box_version: self.box_version };
        let text = vagrant::render(&lab, &options).map_err(|e| Ended::Wrong(e.to_string()))?;
        print_text(&text);
        Ok(())
    }
}
