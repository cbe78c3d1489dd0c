//! What a lab file's errors say, and that no file makes the reader panic.

use std::fmt::Write as _;

use podwire_provisioner::lab::{Lab, LabError, Source};
use podwire_provisioner::plan::{Places, plan};
use proptest::prelude::*;

const GOOD: &str = include_str!("../../labs/native-routing/lab.toml");

fn parse(text: &str) -> Result<Lab, LabError> {
    Lab::parse(&Source::text("lab.toml", text))
}

#[test]
fn the_labs_of_this_repository_are_good() {
    for name in podwire_provisioner::lab::embedded_names() {
        let lab = Lab::load(&name).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(lab.name, name, "a lab has its directory's name");
        lab.typed_values().unwrap();
    }
}

/// Each case replaces one text of a good file by another; the errors of all cases are one reviewed snapshot.
#[test]
fn every_error_names_line_cause_and_mend() {
    const ETH1_CTR: &str = r#"interfaces.eth1 = { subnet = "lan-a", address = "192.168.10.100" }"#;
    const ETH1_W1: &str = r#"interfaces.eth1 = { subnet = "lan-a", address = "192.168.10.101" }"#;
    let cases: &[(&str, &str, &str)] = &[
        ("address outside its subnet", "192.168.10.101\" }", "192.168.11.101\" }"),
        ("network address", "\"192.168.10.101\" }", "\"192.168.10.0\" }"),
        ("broadcast address", "\"192.168.10.101\" }", "\"192.168.10.255\" }"),
        ("duplicate address", "\"192.168.10.101\" }", "\"192.168.10.100\" }"),
        ("address of an own network twice", "loop2 = \"10.10.2.200/24\"", "loop2 = \"192.168.10.100/24\""),
        ("duplicate node", "[nodes.k8s-w1]", "[nodes.k8s-ctr]"),
        (
            "duplicate interface",
            ETH1_W1,
            "interfaces.eth1 = { subnet = \"lan-a\", address = \"192.168.10.101\" }\ninterfaces.eth1 = { subnet = \"lan-a\", address = \"192.168.10.102\" }",
        ),
        (
            "two interfaces in one subnet",
            ETH1_W1,
            "interfaces.eth1 = { subnet = \"lan-a\", address = \"192.168.10.101\" }\ninterfaces.eth2 = { subnet = \"lan-a\", address = \"192.168.10.102\" }",
        ),
        ("pod CIDR overlaps the subnet", "podCIDR = \"10.244.0.0/16\"", "podCIDR = \"192.168.0.0/16\""),
        ("service CIDR overlaps the pod CIDR", "10.96.0.0/16", "10.244.128.0/17"),
        ("own networks overlap", "10.10.2.200/24", "10.10.1.201/24"),
        ("loopback network", "serviceCIDR = \"10.96.0.0/16\"", "serviceCIDR = \"127.0.0.0/16\""),
        ("host bits in a CIDR", "cidr = \"192.168.10.0/24\"", "cidr = \"192.168.10.1/24\""),
        ("subnet too small", "cidr = \"192.168.10.0/24\"", "cidr = \"192.168.10.100/31\""),
        ("not an address", "\"192.168.10.101\" }", "\"192.168.10.300\" }"),
        ("not a CIDR", "serviceCIDR = \"10.96.0.0/16\"", "serviceCIDR = \"10.96.0.0\""),
        ("mistyped key", ETH1_W1, "interfaces.eth1 = { subnet = \"lan-a\", adress = \"192.168.10.101\" }"),
        ("unknown key", "week = 3", "colour = \"blue\""),
        ("mistyped table", "[kubernetes]", "[kubernets]"),
        ("mistyped value of the agent", "routingMode", "routingmode"),
        ("mistyped inner value of the agent", "endpointRoutes.enabled", "endpointRoutes.enable"),
        (
            "value of the agent of the wrong type",
            "autoDirectNodeRoutes = true",
            "autoDirectNodeRoutes = \"yes\"",
        ),
        (
            "value of the agent that is no word of it",
            "ipam.mode = \"kubernetes\"",
            "ipam.mode = \"multi-pool\"",
        ),
        ("values that contradict", "ipv4NativeRoutingCIDR = \"10.244.0.0/16\"\n", ""),
        (
            "native CIDR misses the pod CIDR",
            "ipv4NativeRoutingCIDR = \"10.244.0.0/16\"",
            "ipv4NativeRoutingCIDR = \"172.20.0.0/16\"",
        ),
        ("a number where text belongs", "role = \"worker\"", "role = 5"),
        ("text where a table belongs", ETH1_CTR, "interfaces = \"eth1\""),
        ("text where a number belongs", "week = 3", "week = \"three\""),
        ("a number out of range", "port = 80", "port = 80000"),
        ("text where a list belongs", "apps = [\"webpod\", \"curl-pod\"]", "apps = \"webpod\""),
        ("no control plane", "role = \"control-plane\"", "role = \"worker\""),
        ("two control planes", "role = \"worker\"", "role = \"control-plane\""),
        ("unknown role", "role = \"worker\"", "role = \"wroker\""),
        ("no role", "role = \"worker\"\n", ""),
        (
            "unknown subnet",
            "{ subnet = \"lan-a\", address = \"192.168.10.101\"",
            "{ subnet = \"lan-b\", address = \"192.168.10.101\"",
        ),
        ("interface without address", ETH1_W1, "interfaces.eth1 = { subnet = \"lan-a\" }"),
        (
            "Kubernetes node without eth1",
            ETH1_W1,
            "interfaces.eth5 = { subnet = \"lan-a\", address = \"192.168.10.101\" }",
        ),
        ("node without interface", ETH1_W1, ""),
        ("bad node name", "[nodes.k8s-w1]", "[nodes.K8s_W1]"),
        ("node name too long for a device", "[nodes.k8s-w1]", "[nodes.kubernetes-worker-1]"),
        ("bad lab name", "name = \"native-routing\"", "name = \"../etc\""),
        ("no lab name", "name = \"native-routing\"\n", ""),
        ("node with a subnet's name", "[nodes.k8s-w1]", "[nodes.lan-a]"),
        ("node with the name of a switch's own device", "[nodes.k8s-w1]", "[nodes.br0]"),
        ("bad device name", "networks.loop1", "networks.\"a/b\""),
        ("device name of the agent", "networks.loop1", "networks.podwire_host"),
        (
            "next hop elsewhere",
            "[nodes.k8s-w1]\nrole = \"worker\"\ninterfaces.eth1 = { subnet = \"lan-a\", address = \"192.168.10.101\" }\nroutes = [{ to = \"10.10.0.0/16\", via = \"192.168.10.200\" }]",
            "[nodes.k8s-w1]\nrole = \"worker\"\ninterfaces.eth1 = { subnet = \"lan-a\", address = \"192.168.10.101\" }\nroutes = [{ to = \"10.10.0.0/16\", via = \"10.10.1.200\" }]",
        ),
        (
            "next hop that nobody is",
            "via = \"192.168.10.200\" }]\n\n[nodes.k8s-w1]",
            "via = \"192.168.10.222\" }]\n\n[nodes.k8s-w1]",
        ),
        (
            "next hop is the node itself",
            "via = \"192.168.10.200\" }]\n\n[nodes.k8s-w1]",
            "via = \"192.168.10.100\" }]\n\n[nodes.k8s-w1]",
        ),
        ("route without a next hop", "via = \"192.168.10.200\" }]\n\n[nodes.k8s-w1]", "}]\n\n[nodes.k8s-w1]"),
        ("unknown app", "\"curl-pod\"", "\"curlpod\""),
        ("app outside the lab's directory", "\"curl-pod\"", "\"../../etc/passwd\""),
        ("web server on a Kubernetes node", "[nodes.k8s-w1]", "[nodes.k8s-w1]\nweb = { port = 80 }"),
        ("pod CIDR too small for the nodes", "podCIDR = \"10.244.0.0/16\"", "podCIDR = \"10.244.0.0/24\""),
        ("pod CIDR without room", "podCIDR = \"10.244.0.0/16\"", "podCIDR = \"10.244.0.0/31\""),
        ("service CIDR without room", "serviceCIDR = \"10.96.0.0/16\"", "serviceCIDR = \"10.96.0.1/32\""),
        ("value where a table of values belongs", "ipam.mode = \"kubernetes\"", "ipam = \"kubernetes\""),
        ("node mask wider than the pod CIDR", "nodeCIDRMaskSize = 24", "nodeCIDRMaskSize = 12"),
        ("not TOML", "[kubernetes]", "[kubernetes"),
        (
            "several at once",
            "192.168.10.101\" }",
            "192.168.11.101\", colour = 1 }\nnetworks.lo = \"10.10.1.0/24\"",
        ),
    ];
    let mut all = String::new();
    for (what, from, to) in cases {
        assert!(GOOD.contains(from), "{what}: the good file has no {from:?}");
        let text = GOOD.replacen(from, to, 1);
        let error = match parse(&text) {
            Ok(lab) => panic!("{what}: accepted as {lab:?}"),
            Err(error) => error.to_string(),
        };
        writeln!(all, "# {what}\n{error}\n").unwrap();
    }
    insta::assert_snapshot!(all);
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &std::path::Path| {
        let error = Lab::load(path.to_str().unwrap()).unwrap_err().to_string();
        error.replace(dir.path().to_str().unwrap(), "DIR")
    };
    let file = dir.path().join("lab.toml");
    let mut all = message(&file);
    std::fs::write(&file, b"name = \"a\"\n# \xff\n").unwrap();
    write!(all, "\n{}", message(dir.path())).unwrap();
    std::fs::write(&file, vec![b'#'; 300 * 1024]).unwrap();
    write!(all, "\n{}", message(&file)).unwrap();
    std::fs::write(&file, b"").unwrap();
    write!(all, "\n{}", message(&file)).unwrap();
    write!(all, "\n{}", message(std::path::Path::new("/dev/null"))).unwrap();
    write!(all, "\n{}", Lab::load("native-routng").unwrap_err()).unwrap();
    write!(all, "\n{}", Lab::load("week9").unwrap_err()).unwrap();
    insta::assert_snapshot!(all);
}

#[test]
fn apps_may_stand_beside_the_lab_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lab.toml");
    std::fs::write(&file, GOOD.replace("\"curl-pod\"", "\"mine.yaml\"")).unwrap();
    std::fs::write(dir.path().join("mine.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine}\n")
        .unwrap();
    let lab = Lab::load(file.to_str().unwrap()).unwrap();
    assert_eq!(lab.apps[1].name, "mine");
    std::fs::write(dir.path().join("mine.yaml"), "kind: ConfigMap\n").unwrap();
    let error = Lab::load(file.to_str().unwrap()).unwrap_err().to_string();
    assert!(
        error.contains("lab.toml:5: app \"mine\": a document of its manifest has no apiVersion"),
        "{error}"
    );
}

#[test]
fn the_plan_of_native_routing() {
    let lab = parse(GOOD).unwrap();
    let places = Places { state: "/state/native-routing".into(), bin_dir: "/bin-dir".into() };
    let plan = plan(&lab, &lab.typed_values().unwrap(), &places);
    insta::assert_snapshot!(plan.to_string());
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<podwire_provisioner::plan::Plan>(&json).unwrap(), plan);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Cut, doubled, moved and overwritten: each file is read or refused, and each error stands on a line of it.
    #[test]
    fn no_file_makes_it_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4_u8, ".{0,12}"), 1..6)
    ) {
        let mut text: Vec<char> = GOOD.chars().collect();
        for (a, b, how, new) in edits {
            if text.is_empty() { break; }
            let (a, b) = (a.index(text.len()), b.index(text.len()));
            let (from, to) = (a.min(b), a.max(b).min(a.min(b) + 60));
            let piece: Vec<char> = text[from..to].to_vec();
            match how {
                0 => { text.drain(from..to); }
                1 => { text.splice(b..b, piece); }
                2 => { text.splice(from..(from + new.chars().count()).min(text.len()), new.chars()); }
                _ => text.truncate(b),
            }
        }
        let text: String = text.into_iter().collect();
        check(&text)?;
    }

    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}") {
        check(&text)?;
    }

    #[test]
    fn no_toml_makes_it_panic(
        lines in prop::collection::vec((
            prop::sample::select(vec!["name", "week", "apps", "[kubernetes]", "podCIDR", "[subnets.a]", "cidr", "[nodes.b]", "role",
                "interfaces.eth1", "networks.x", "routes", "web", "[values]", "ipam.mode", "[[nodes]]", "nodeCIDRMaskSize"]),
            prop::sample::select(vec!["1", "\"a\"", "true", "[]", "{}", "[[1]]", "\"10.0.0.0/8\"", "\"0.0.0.0/0\"", "1.5", "-9223372036854775808",
                "{ subnet = \"a\", address = \"10.0.0.1\" }", "[{ to = \"10.0.0.0/8\", via = \"10.0.0.1\" }]", "\"control-plane\"", "1979-05-27", "32"]),
        ), 0..20)
    ) {
        let text: String = lines
            .iter()
            .map(|(key, value)| if key.starts_with('[') { format!("{key}\n") } else { format!("{key} = {value}\n") })
            .collect();
        check(&text)?;
    }
}

fn check(text: &str) -> Result<(), TestCaseError> {
    if let Err(LabError::Invalid(errors)) = parse(text) {
        prop_assert!(!errors.is_empty());
        let lines = text.lines().count().max(1) + 1;
        for error in errors {
            prop_assert!((1..=lines).contains(&error.line), "{error}");
            prop_assert!(!error.message.contains('\n'), "{error}");
        }
    }
    Ok(())
}
