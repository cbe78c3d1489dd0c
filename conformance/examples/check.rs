//! Checks captures from the command line:
//! `cargo run -p podwire-conformance --example check -- FILE... --pod-cidr 10.244.0.0/16 [--node NAME=IP]... [--report DIR]`

use std::error::Error;
use std::path::PathBuf;

use podwire_conformance::check::{self, Context, Expectation};
use podwire_conformance::report::{self, Lang};

fn main() -> Result<(), Box<dyn Error>> {
    let mut context =
        Context { command: Some(std::env::args().collect::<Vec<_>>().join(" ")), ..Context::default() };
    let (mut files, mut directory, mut lang) = (Vec::new(), None, Lang::En);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--pod-cidr" => context.pod_cidrs.push(value()?.parse()?),
            "--service-cidr" => context.service_cidrs.push(value()?.parse()?),
            "--flow" => context.flows.push(value()?.parse()?),
            "--node" => {
                let node = value()?;
                let (name, address) = node.split_once('=').ok_or("--node needs NAME=IP")?;
                context.nodes.entry(name.to_owned()).or_default().push(address.parse()?);
            }
            "--report" => directory = Some(PathBuf::from(value()?)),
            "--lang" => lang = value()?.parse()?,
            _ => files.push(PathBuf::from(&arg)),
        }
    }
    let found = check::run(&files, Expectation::Native, &context)?;
    print!("{}", report::text(&found, lang));
    if let Some(directory) = directory {
        println!("{}", report::write_all(&found, &directory, lang)?.display());
    }
    std::process::exit(found.exit_code());
}
