//! A lab as a Vagrantfile, for libvirt, VirtualBox and VMware.
//!
//! Pure text: what a machine needs beyond its hardware (routes, dummy networks, Kubernetes) is deployed over SSH afterwards, by
//! the same plan as for the other providers.

use serde_json::{Value, json};
use tera::Tera;

use crate::error::{Failure, OrFailure};
use crate::lab::{Interface, Lab, Node, Role};

/// The box of the public study.
pub const DEFAULT_BOX: &str = "bento/ubuntu-24.04";
/// First port that is tried for a machine's SSH on the host.
const SSH_PORTS: u32 = 60000;

/// What the user may choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The box's name.
    pub box_name: String,
    /// Its version; none for the newest that is there.
    pub box_version: Option<String>,
}

/// The Vagrantfile.
pub fn render(lab: &Lab, options: &Options) -> Result<String, Failure> {
    let thing = "the Vagrantfile";
    let bug = "report this as a bug";
    let mut tera = Tera::default();
    // No ending that tera escapes for: Ruby's quotes are ours.
    tera.add_raw_template("Vagrantfile", include_str!("../../Vagrantfile.tera")).or_failure(thing, bug)?;
    let context = tera::Context::from_serialize(values(lab, options)?).or_failure(thing, bug)?;
    tera.render("Vagrantfile", &context).or_failure(thing, bug)
}

fn values(lab: &Lab, options: &Options) -> Result<Value, Failure> {
    let machines = lab
        .nodes
        .iter()
        .zip(SSH_PORTS..)
        .map(|(node, port)| machine(lab, node, port))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(json!({
        // It stands in a comment, where a line break would end it; a lab's name has none.
        "lab": plain("lab", &lab.name)?,
        "prefix": quoted("lab", &format!("{}_", lab.name))?,
        "box": quoted("--box", &options.box_name)?,
        "box_version": options.box_version.as_deref().map(|v| quoted("--box-version", v)).transpose()?,
        "machines": machines,
    }))
}

/// Sizes of the study's machines: what fits four of them into 7 CPUs and 6.4 GB.
fn size(role: Role) -> (u32, u32) {
    match role {
        Role::ControlPlane => (2, 2560),
        Role::Worker => (2, 1536),
        Role::Router => (1, 768),
    }
}

fn machine(lab: &Lab, node: &Node, port: u32) -> Result<Value, Failure> {
    let (cpus, memory) = size(node.role);
    let interfaces = node
        .interfaces
        .iter()
        .map(|interface| self::interface(lab, interface))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(json!({
        "name": quoted("node", &node.name)?,
        "full_name": quoted("node", &format!("{}-{}", lab.name, node.name))?,
        "role": node.role.to_string(),
        "cpus": cpus,
        "memory": memory,
        "ssh_port": port,
        "interfaces": interfaces,
    }))
}

fn interface(lab: &Lab, interface: &Interface) -> Result<Value, Failure> {
    Ok(json!({
        "device": plain("device", &interface.name)?,
        "ip": quoted("address", &interface.address.addr().to_string())?,
        "netmask": quoted("address", &interface.address.netmask().to_string())?,
        "network": quoted("subnet", &format!("{}-{}", lab.name, interface.subnet))?,
    }))
}

/// A Ruby string in single quotes, in which nothing but the backslash and the quote means anything.
fn quoted(thing: &str, text: &str) -> Result<String, Failure> {
    let text = plain(thing, text)?;
    Ok(format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")))
}

/// Refuses what no name, version or address has, and what could end a line, a string or a file for Ruby.
fn plain<'a>(thing: &str, text: &'a str) -> Result<&'a str, Failure> {
    let bad = text.chars().find(|c| !c.is_ascii_graphic() || "'\"`\\#{}$;|&<>".contains(*c));
    if let Some(bad) = bad {
        let mend = "use letters, digits and the signs of names and versions: . - _ / + : @ ~";
        return Err(Failure::new(format!("{thing} {text:?}"), format!("{bad:?} has no place in it"), mend));
    }
    if text.is_empty() {
        return Err(Failure::new(thing, "it is empty", "write a name"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn options(name: &str) -> Options {
        Options { box_name: name.to_owned(), box_version: None }
    }

    #[test]
    fn every_lab_renders() {
        for name in crate::lab::embedded_names() {
            let text = render(&Lab::load(&name).unwrap(), &options(DEFAULT_BOX)).unwrap();
            insta::assert_snapshot!(format!("vagrantfile_{name}"), text);
        }
    }

    #[test]
    fn what_could_be_code_is_refused() {
        let lab = Lab::load("native-routing").unwrap();
        for evil in ["x'; system('id'); '", "#{`id`}", "a\nb", "a\\", "", "박스", "a b"] {
            let error = render(&lab, &options(evil)).unwrap_err();
            assert!(error.to_string().contains("--box"), "{error}");
        }
        let version = Options { box_version: Some("1'".into()), ..options("a") };
        assert!(render(&lab, &version).is_err());
        assert!(
            render(&lab, &options("bento/ubuntu-24.04"))
                .unwrap()
                .contains("config.vm.box = 'bento/ubuntu-24.04'")
        );
    }

    proptest! {
        /// Whatever is rendered holds the text once, between two quotes, and no other quote or line break came with it.
        #[test]
        fn no_text_breaks_out_of_its_string(text in "\\PC{0,40}|[ -~\\n\\r\\t]{0,40}") {
            let lab = Lab::load("native-routing").unwrap();
            let plain = render(&lab, &options("box")).unwrap();
            if let Ok(rendered) = render(&lab, &options(&text)) {
                prop_assert_eq!(rendered.replacen(&format!("'{text}'"), "'box'", 1), plain);
            }
        }
    }
}
