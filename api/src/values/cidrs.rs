//! A value that is one CIDR or a list of them. One stays one when it is written, as the course shows it.

use std::fmt;

use ipnet::Ipv4Net;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserializer, Serialize, Serializer};

pub(super) fn serialize<S: Serializer>(cidrs: &[Ipv4Net], serializer: S) -> Result<S::Ok, S::Error> {
    match cidrs {
        [one] => one.serialize(serializer),
        many => many.serialize(serializer),
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Ipv4Net>, D::Error> {
    deserializer.deserialize_any(OneOrMany)
}

struct OneOrMany;

impl<'de> Visitor<'de> for OneOrMany {
    type Value = Vec<Ipv4Net>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an IPv4 CIDR such as 10.244.0.0/16, or a list of them")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let one = text.parse().map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))?;
        Ok(vec![one])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut cidrs = Vec::new();
        while let Some(cidr) = list.next_element()? {
            cidrs.push(cidr);
        }
        Ok(cidrs)
    }
}
