//! Security identities: a number that pods with the same namespace and labels share.
//!
//! Until policies need more, the number is a hash, the same on every node without any allocation. Two sets of labels may
//! meet in one number (1 in 16 million for a pair); nothing but names in flows depends on it today.

use std::collections::BTreeMap;

use podwire_abi::identity::FIRST_USER;

/// Identities have 24 bits, as a VXLAN VNI does.
const LIMIT: u32 = 1 << 24;

/// Labels that differ between pods of one workload and so say nothing of who a pod is.
const INSTANCE_LABELS: [&str; 5] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
];

/// The identity of a namespace and labels.
pub fn identity(namespace: &str, labels: &BTreeMap<String, String>) -> u32 {
    let mut hash = Fnv::default();
    hash.text(namespace);
    for (key, value) in labels.iter().filter(|(key, _)| !INSTANCE_LABELS.contains(&key.as_str())) {
        hash.text(key);
        hash.text(value);
    }
    FIRST_USER + (hash.0 % u64::from(LIMIT - FIRST_USER)) as u32
}

/// FNV-1a of 64 bits (draft-eastlake-fnv): small, and the same for ever, which the standard library's hash is not.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn text(&mut self, text: &str) {
        // A byte that no text contains ends each, so that no two lists look the same.
        for byte in text.bytes().chain([0xff]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn same_labels_same_number() {
        let a = identity("default", &labels(&[("app", "webpod"), ("pod-template-hash", "abc")]));
        assert_eq!(a, identity("default", &labels(&[("app", "webpod"), ("pod-template-hash", "def")])));
        assert_ne!(a, identity("kube-system", &labels(&[("app", "webpod")])));
        assert_ne!(a, identity("default", &labels(&[("app", "webpo"), ("d", "")])));
        assert!((FIRST_USER..LIMIT).contains(&a));
        // The number is part of what flows show; it must not change from version to version.
        assert_eq!(
            identity("", &BTreeMap::new()),
            FIRST_USER + (0xaf64_724c_8602_eb6e_u64 % u64::from(LIMIT - FIRST_USER)) as u32
        );
    }
}
