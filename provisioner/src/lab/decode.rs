//! From TOML to [`RawLab`]: types and keys, each with its line. What the values mean together is `validate`'s part.

use std::fmt::Display;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Report;
use super::words::{hint, nearest};
use super::{Role, Source, Web};

/// A value and the line it stands on.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) line: usize,
}

impl<T> At<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> At<U> {
        At { value: f(self.value), line: self.line }
    }
}

/// A lab file's tables. What is absent or could not be read is `None`; the latter is in the report already.
#[derive(Debug, Default)]
pub(super) struct RawLab {
    pub(super) name: Option<At<String>>,
    pub(super) title: Option<At<String>>,
    pub(super) week: Option<At<u8>>,
    pub(super) apps: Vec<At<String>>,
    pub(super) pod_cidr: Option<At<Ipv4Net>>,
    pub(super) service_cidr: Option<At<Ipv4Net>>,
    pub(super) mask_size: Option<At<u8>>,
    pub(super) subnets: Vec<RawSubnet>,
    pub(super) nodes: Vec<RawNode>,
    pub(super) values: Map<String, Value>,
    /// Each leaf of `values`, dotted, with its line.
    pub(super) value_lines: Vec<At<String>>,
}

#[derive(Debug)]
pub(super) struct RawSubnet {
    pub(super) name: At<String>,
    pub(super) cidr: Option<At<Ipv4Net>>,
}

#[derive(Debug)]
pub(super) struct RawNode {
    pub(super) name: At<String>,
    pub(super) role: Option<At<Role>>,
    pub(super) interfaces: Vec<RawInterface>,
    /// The key is there, whatever it holds.
    pub(super) has_interfaces: bool,
    pub(super) networks: Vec<(At<String>, At<Ipv4Net>)>,
    pub(super) routes: Vec<(At<Ipv4Net>, At<Ipv4Addr>)>,
    pub(super) web: Option<At<Web>>,
}

#[derive(Debug)]
pub(super) struct RawInterface {
    pub(super) name: At<String>,
    pub(super) subnet: Option<At<String>>,
    pub(super) address: Option<At<Ipv4Addr>>,
}

const TOP_KEYS: [&str; 8] = ["name", "title", "week", "apps", "kubernetes", "subnets", "nodes", "values"];
const KUBERNETES_KEYS: [&str; 3] = ["podCIDR", "serviceCIDR", "nodeCIDRMaskSize"];
const NODE_KEYS: [&str; 5] = ["role", "interfaces", "networks", "routes", "web"];

/// Reads a lab file. A file with syntax errors gives those errors and nothing else.
pub(super) fn decode(source: &Source) -> (RawLab, Report) {
    let mut decoder = Decoder { source, report: Report::new(&source.file) };
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    if errors.is_empty() {
        let raw = decoder.lab(document.get_ref());
        return (raw, decoder.report);
    }
    let mut doubled_table = None;
    for error in errors {
        let span = error.span().unwrap_or_default();
        let line = source.line(span.start);
        let text = source.text.get(span).unwrap_or_default();
        if error.message().trim() != "duplicate key" {
            let message = error.message().trim().replace('\n', ", ");
            decoder.report.add(line, format!("not TOML: {message}; mend the syntax (https://toml.io)"));
            continue;
        }
        // All keys of a table that stands there twice are there twice: one error is enough.
        if doubled_table.is_some_and(|table| source.table_of(table) == source.table_of(line)) {
            continue;
        }
        if source.is_table_header(line) {
            doubled_table = Some(line);
        }
        decoder.report.add(line, format!("{:?} is there twice; rename or remove one", shorten(text)));
    }
    (RawLab::default(), decoder.report)
}

struct Decoder<'a> {
    source: &'a Source,
    report: Report,
}

/// One table's entries in the file's order.
type Entries<'t> = Vec<(At<&'t str>, At<&'t DeValue<'t>>)>;

impl Decoder<'_> {
    fn lab(&mut self, table: &DeTable<'_>) -> RawLab {
        let mut raw = RawLab::default();
        for (key, value) in self.entries(table) {
            match key.value {
                "name" => raw.name = self.text(&value, "name", "native-routing"),
                "title" => raw.title = self.text(&value, "title", "Native routing"),
                "week" => raw.week = self.number(&value, "week", 1, 52),
                "apps" => {
                    for item in self.items(&value, "apps", r#"["webpod", "curl-pod"]"#) {
                        raw.apps.extend(self.text(&item, "an item of apps", "webpod"));
                    }
                }
                "kubernetes" => self.kubernetes(&value, &mut raw),
                "subnets" => {
                    for (name, value) in self.table(&value, "subnets", "[subnets.lan-a]") {
                        let cidr = self.subnet(&name, &value);
                        raw.subnets.push(RawSubnet { name: name.map(str::to_owned), cidr });
                    }
                }
                "nodes" => {
                    for (name, value) in self.table(&value, "nodes", "[nodes.k8s-ctr]") {
                        let node = self.node(&name, &value);
                        raw.nodes.push(node);
                    }
                }
                "values" => {
                    self.table(&value, "values", "[values]");
                    if let DeValue::Table(table) = value.value {
                        raw.values = self.values(table, "", &mut raw.value_lines);
                    }
                }
                _ => self.unknown(&key, "the lab file", &TOP_KEYS),
            }
        }
        raw
    }

    fn kubernetes(&mut self, value: &At<&DeValue<'_>>, raw: &mut RawLab) {
        for (key, value) in self.table(value, "kubernetes", "[kubernetes]") {
            match key.value {
                "podCIDR" => raw.pod_cidr = self.cidr(&value, "podCIDR", "10.244.0.0/16"),
                "serviceCIDR" => raw.service_cidr = self.cidr(&value, "serviceCIDR", "10.96.0.0/16"),
                "nodeCIDRMaskSize" => {
                    raw.mask_size = self.number(&value, "nodeCIDRMaskSize", 1, 30);
                }
                _ => self.unknown(&key, "[kubernetes]", &KUBERNETES_KEYS),
            }
        }
    }

    fn subnet(&mut self, name: &At<&str>, value: &At<&DeValue<'_>>) -> Option<At<Ipv4Net>> {
        let thing = format!("subnet {:?}", name.value);
        let mut cidr = None;
        let entries = self.table(value, &thing, r#"{ cidr = "192.168.10.0/24" }"#);
        let is_table = matches!(value.value, DeValue::Table(_));
        let had_cidr = entries.iter().any(|(k, _)| k.value == "cidr");
        for (key, value) in entries {
            match key.value {
                "cidr" => cidr = self.cidr(&value, &format!("cidr of {thing}"), "192.168.10.0/24"),
                _ => self.unknown(&key, &thing, &["cidr"]),
            }
        }
        if is_table && !had_cidr {
            self.report.add(name.line, format!("{thing} has no cidr; add cidr = \"192.168.10.0/24\""));
        }
        cidr
    }

    fn node(&mut self, name: &At<&str>, value: &At<&DeValue<'_>>) -> RawNode {
        let thing = format!("node {:?}", name.value);
        let mut node = RawNode {
            name: At { value: name.value.to_owned(), line: name.line },
            role: None,
            interfaces: Vec::new(),
            has_interfaces: false,
            networks: Vec::new(),
            routes: Vec::new(),
            web: None,
        };
        let entries = self.table(value, &thing, r#"{ role = "worker", ... }"#);
        let is_table = matches!(value.value, DeValue::Table(_));
        let had_role = entries.iter().any(|(k, _)| k.value == "role");
        for (key, value) in entries {
            match key.value {
                "role" => node.role = self.role(&value, &thing),
                "interfaces" => {
                    node.has_interfaces = true;
                    let example = r#"interfaces.eth1 = { subnet = "lan-a", address = "192.168.10.100" }"#;
                    for (name, value) in self.table(&value, &format!("interfaces of {thing}"), example) {
                        let interface = self.interface(&name, &value, &thing);
                        node.interfaces.push(interface);
                    }
                }
                "networks" => {
                    let example = r#"networks.loop1 = "10.10.1.200/24""#;
                    for (name, value) in self.table(&value, &format!("networks of {thing}"), example) {
                        let what = format!("network {:?} of {thing}", name.value);
                        if let Some(address) = self.address_and_length(&value, &what, "10.10.1.200/24") {
                            node.networks.push((name.map(str::to_owned), address));
                        }
                    }
                }
                "routes" => {
                    let example = r#"[{ to = "10.10.0.0/16", via = "192.168.10.200" }]"#;
                    for item in self.items(&value, &format!("routes of {thing}"), example) {
                        node.routes.extend(self.route(&item, &thing));
                    }
                }
                "web" => node.web = self.web(&value, &thing, name.value),
                _ => self.unknown(&key, &thing, &NODE_KEYS),
            }
        }
        if is_table && !had_role {
            let message =
                format!("{thing} has no role; add role = \"control-plane\", \"worker\" or \"router\"");
            self.report.add(name.line, message);
        }
        node
    }

    fn role(&mut self, value: &At<&DeValue<'_>>, thing: &str) -> Option<At<Role>> {
        let text = self.text(value, &format!("role of {thing}"), "worker")?;
        let role = match text.value.as_str() {
            "control-plane" => Role::ControlPlane,
            "worker" => Role::Worker,
            "router" => Role::Router,
            other => {
                let hint = hint(other, ["control-plane", "worker", "router"], "the roles are");
                self.report.add(text.line, format!("{thing} has the unknown role {other:?}; {hint}"));
                return None;
            }
        };
        Some(At { value: role, line: text.line })
    }

    fn interface(&mut self, name: &At<&str>, value: &At<&DeValue<'_>>, node: &str) -> RawInterface {
        let thing = format!("interface {:?} of {node}", name.value);
        let example = r#"{ subnet = "lan-a", address = "192.168.10.100" }"#;
        let mut interface = RawInterface {
            name: At { value: name.value.to_owned(), line: name.line },
            subnet: None,
            address: None,
        };
        let entries = self.table(value, &thing, example);
        if matches!(value.value, DeValue::Table(_)) {
            for wanted in ["subnet", "address"] {
                if !entries.iter().any(|(k, _)| k.value == wanted) {
                    self.report
                        .add(name.line, format!("{thing} has no {wanted}; write {} = {example}", name.value));
                }
            }
        }
        for (key, value) in entries {
            match key.value {
                "subnet" => interface.subnet = self.text(&value, &format!("subnet of {thing}"), "lan-a"),
                "address" => {
                    interface.address = self.ip(&value, &format!("address of {thing}"), "192.168.10.100");
                }
                _ => self.unknown(&key, &thing, &["subnet", "address"]),
            }
        }
        interface
    }

    fn route(&mut self, value: &At<&DeValue<'_>>, node: &str) -> Option<(At<Ipv4Net>, At<Ipv4Addr>)> {
        let thing = format!("a route of {node}");
        let example = r#"{ to = "10.10.0.0/16", via = "192.168.10.200" }"#;
        let (mut to, mut via) = (None, None);
        let entries = self.table(value, &thing, example);
        if matches!(value.value, DeValue::Table(_)) {
            for wanted in ["to", "via"] {
                if !entries.iter().any(|(k, _)| k.value == wanted) {
                    self.report.add(value.line, format!("{thing} has no {wanted:?}; write {example}"));
                }
            }
        }
        for (key, value) in entries {
            match key.value {
                "to" => to = self.cidr(&value, &format!("\"to\" of {thing}"), "10.10.0.0/16"),
                "via" => via = self.ip(&value, &format!("\"via\" of {thing}"), "192.168.10.200"),
                _ => self.unknown(&key, &thing, &["to", "via"]),
            }
        }
        to.zip(via)
    }

    fn web(&mut self, value: &At<&DeValue<'_>>, node: &str, node_name: &str) -> Option<At<Web>> {
        let thing = format!("web server of {node}");
        let example = r#"{ port = 80, title = "router" }"#;
        let mut web = Web { port: 80, title: node_name.to_owned() };
        for (key, value) in self.table(value, &thing, example) {
            match key.value {
                "port" => {
                    web.port = self.number(&value, &format!("port of the {thing}"), 1, 65535)?.value;
                }
                "title" => web.title = self.text(&value, &format!("title of the {thing}"), "router")?.value,
                _ => self.unknown(&key, &thing, &["port", "title"]),
            }
        }
        matches!(value.value, DeValue::Table(_)).then_some(At { value: web, line: value.line })
    }

    /// `[values]` as JSON, recording each leaf's line.
    fn values(&mut self, table: &DeTable<'_>, path: &str, lines: &mut Vec<At<String>>) -> Map<String, Value> {
        let mut map = Map::new();
        for (key, value) in self.entries(table) {
            let path = if path.is_empty() { key.value.to_owned() } else { format!("{path}.{}", key.value) };
            let json = if let DeValue::Table(inner) = value.value {
                Value::Object(self.values(inner, &path, lines))
            } else {
                lines.push(At { value: path.clone(), line: key.line });
                match self.json(&value) {
                    Some(json) => json,
                    None => continue,
                }
            };
            map.insert(key.value.to_owned(), json);
        }
        map
    }

    fn json(&mut self, value: &At<&DeValue<'_>>) -> Option<Value> {
        match value.value {
            DeValue::String(s) => Some(Value::String(s.to_string())),
            DeValue::Boolean(b) => Some(Value::Bool(*b)),
            DeValue::Integer(i) => {
                let number = i64::from_str_radix(i.as_str(), i.radix()).ok();
                if number.is_none() {
                    self.report.add(value.line, format!("the number {i} is too large; write a smaller one"));
                }
                number.map(Value::from)
            }
            DeValue::Array(items) => {
                let mut list = Vec::new();
                for item in items {
                    let at = At { value: item.get_ref(), line: self.source.line(item.span().start) };
                    list.push(self.json(&at)?);
                }
                Some(Value::Array(list))
            }
            DeValue::Table(table) => Some(Value::Object(self.values(table, "", &mut Vec::new()))),
            DeValue::Float(_) | DeValue::Datetime(_) => {
                let kind = value.value.type_str();
                self.report
                    .add(value.line, format!("no value of the agent is a {kind}; write text or a number"));
                None
            }
        }
    }

    fn entries<'t>(&self, table: &'t DeTable<'t>) -> Entries<'t> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let at = |offset| self.source.line(offset);
        entries
            .into_iter()
            .map(|(key, value)| {
                let key_line = at(key.span().start);
                // A table's span is that of its header, which may be far from the key that is meant.
                let line = if value.get_ref().is_table() { key_line } else { at(value.span().start) };
                (At { value: key.get_ref().as_ref(), line: key_line }, At { value: value.get_ref(), line })
            })
            .collect()
    }

    fn table<'t>(&mut self, value: &At<&'t DeValue<'t>>, thing: &str, example: &str) -> Entries<'t> {
        if let DeValue::Table(table) = value.value {
            return self.entries(table);
        }
        self.wrong_type(value, thing, "a table", example);
        Vec::new()
    }

    fn items<'t>(
        &mut self,
        value: &At<&'t DeValue<'t>>,
        thing: &str,
        example: &str,
    ) -> Vec<At<&'t DeValue<'t>>> {
        let DeValue::Array(items) = value.value else {
            self.wrong_type(value, thing, "a list", example);
            return Vec::new();
        };
        let at =
            |v: &'t Spanned<DeValue<'t>>| At { value: v.get_ref(), line: self.source.line(v.span().start) };
        items.iter().map(at).collect()
    }

    fn text(&mut self, value: &At<&DeValue<'_>>, thing: &str, example: &str) -> Option<At<String>> {
        if let Some(text) = value.value.as_str() {
            return Some(At { value: text.to_owned(), line: value.line });
        }
        self.wrong_type(value, thing, "text", &format!("{example:?}"));
        None
    }

    fn number<T: TryFrom<i64> + Display>(
        &mut self,
        value: &At<&DeValue<'_>>,
        thing: &str,
        least: i64,
        most: i64,
    ) -> Option<At<T>> {
        let Some(integer) = value.value.as_integer() else {
            self.wrong_type(value, thing, "a whole number", &least.to_string());
            return None;
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.filter(|n| (least..=most).contains(n)).and_then(|n| T::try_from(n).ok());
        if number.is_none() {
            self.report
                .add(value.line, format!("{thing} is {integer}; write a number from {least} to {most}"));
        }
        Some(At { value: number?, line: value.line })
    }

    fn ip(&mut self, value: &At<&DeValue<'_>>, thing: &str, example: &str) -> Option<At<Ipv4Addr>> {
        let text = self.text(value, thing, example)?;
        let address = self.parsed(&text, thing, "an IPv4 address", example)?;
        Some(At { value: address, line: text.line })
    }

    fn cidr(&mut self, value: &At<&DeValue<'_>>, thing: &str, example: &str) -> Option<At<Ipv4Net>> {
        let cidr = self.address_and_length(value, thing, example)?;
        if cidr.value.addr() != cidr.value.network() {
            let (given, meant) = (cidr.value, cidr.value.trunc());
            self.report.add(
                cidr.line,
                format!(
                    "{thing} is {given}, an address and no network; write {meant:?}",
                    meant = meant.to_string()
                ),
            );
            return None;
        }
        Some(cidr)
    }

    fn address_and_length(
        &mut self,
        value: &At<&DeValue<'_>>,
        thing: &str,
        example: &str,
    ) -> Option<At<Ipv4Net>> {
        let text = self.text(value, thing, example)?;
        let what = "an IPv4 address with a prefix length";
        let cidr = self.parsed(&text, thing, what, example)?;
        Some(At { value: cidr, line: text.line })
    }

    fn parsed<T: std::str::FromStr>(
        &mut self,
        text: &At<String>,
        thing: &str,
        what: &str,
        example: &str,
    ) -> Option<T> {
        let parsed = text.value.parse().ok();
        if parsed.is_none() {
            let message =
                format!("{thing} is {:?}, which is not {what}; write for example {example:?}", text.value);
            self.report.add(text.line, message);
        }
        parsed
    }

    fn wrong_type(&mut self, value: &At<&DeValue<'_>>, thing: &str, wanted: impl Display, example: &str) {
        let found = match value.value {
            DeValue::String(s) => format!("the text {:?}", shorten(s)),
            DeValue::Integer(i) => format!("the number {}", shorten(i.as_str())),
            DeValue::Boolean(b) => format!("the boolean {b}"),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
            other => format!("a {}", other.type_str()),
        };
        self.report.add(value.line, format!("{thing} is {found}, not {wanted}; write for example {example}"));
    }

    fn unknown(&mut self, key: &At<&str>, place: &str, known: &[&str]) {
        let help = match nearest(key.value, known.iter().copied()) {
            Some(word) => format!("did you mean {word:?}?"),
            None => format!("the keys here are {}", known.join(", ")),
        };
        self.report.add(key.line, format!("unknown key {:?} in {place}; {help}", shorten(key.value)));
    }
}

/// Keeps an error on one line, whatever was written.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 40 {
        text.to_owned()
    } else {
        text.chars().take(37).collect::<String>() + "..."
    }
}
