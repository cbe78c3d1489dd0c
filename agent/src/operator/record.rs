//! The operator's record of what it gave: ConfigMap `podwire-pod-cidrs`, a key a node.
//!
//! A CIDR is on record before it is given and until it is certain that its node's agent gives no address of it and no pod has
//! one. All gifts go through this one object, and the API server refuses a write that is built on an old version of it: so no
//! two operators, however late or paused, give the same CIDR, and a deleted NodeNetwork does not free what its node still uses.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;

/// A CIDR that a node holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// The CIDR.
    pub cidr: Ipv4Net,
    /// UID of the NodeNetwork for which it was given: giving it anew changes the record, so whoever decides by the old record
    /// is refused.
    pub uid: String,
}

/// Node to what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record(BTreeMap<String, Vec<Held>>);

impl Record {
    /// Reads the ConfigMap's data. A word that cannot be read is an error: to overlook it could give an address twice.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut record = Self::default();
        for (node, text) in data {
            for word in text.split_whitespace() {
                let (cidr, uid) = word.split_once('@').unwrap_or((word, ""));
                let cidr = cidr.parse().map_err(|_| {
                    format!("key {node:?}: {word:?} is not CIDR@UID; correct it, or delete the key if the node is gone")
                })?;
                record.hold(node, cidr, uid);
            }
        }
        Ok(record)
    }

    /// The ConfigMap's data.
    pub fn data(&self) -> BTreeMap<String, String> {
        let words = |held: &Vec<Held>| {
            let words: Vec<String> = held.iter().map(|h| format!("{}@{}", h.cidr, h.uid)).collect();
            words.join(" ")
        };
        self.0.iter().map(|(node, held)| (node.clone(), words(held))).collect()
    }

    /// Notes that `node` holds `cidr`.
    pub fn hold(&mut self, node: &str, cidr: Ipv4Net, uid: &str) {
        let held = self.0.entry(node.into()).or_default();
        match held.iter_mut().find(|h| h.cidr == cidr) {
            Some(there) => uid.clone_into(&mut there.uid),
            None => held.push(Held { cidr, uid: uid.into() }),
        }
    }

    /// Forgets that `node` holds `cidr`.
    pub fn release(&mut self, node: &str, cidr: Ipv4Net) {
        if let Some(held) = self.0.get_mut(node) {
            held.retain(|h| h.cidr != cidr);
            if held.is_empty() {
                self.0.remove(node);
            }
        }
    }

    /// Everything that is held.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Held)> {
        self.0.iter().flat_map(|(node, held)| held.iter().map(|h| (node.as_str(), h)))
    }

    /// What `node` holds.
    pub fn of(&self, node: &str) -> &[Held] {
        self.0.get(node).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nonsense_is_refused() {
        let (a, b) = ("172.20.0.0/24".parse().unwrap(), "172.20.1.0/24".parse().unwrap());
        let mut record = Record::default();
        record.hold("k8s-ctr", a, "u1");
        record.hold("k8s-ctr", b, "u1");
        record.hold("k8s-ctr", a, "u2");
        assert_eq!(record.data()["k8s-ctr"], "172.20.0.0/24@u2 172.20.1.0/24@u1");
        assert_eq!(Record::parse(&record.data()).unwrap(), record);
        record.release("k8s-ctr", a);
        record.release("k8s-ctr", b);
        assert_eq!(record, Record::default());
        let wrong = BTreeMap::from([("k8s-ctr".to_owned(), "nonsense@u".to_owned())]);
        assert!(Record::parse(&wrong).unwrap_err().contains("\"nonsense@u\" is not CIDR@UID"));
    }
}
