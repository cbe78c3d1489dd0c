//! What this kernel can do, found by trying.

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use nix::sys::statfs;

use super::sys;

/// A feature of the kernel that the datapath uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// Whether it is there.
    pub available: bool,
    /// Whether the datapath does not run without it.
    pub needed: bool,
    /// What to do where it is not there, or what happens then; empty if it is there.
    pub mend: String,
}

/// What is asked, and what to say if it fails.
struct Question {
    name: &'static str,
    needed: bool,
    /// The kernel's answer, or why it gave none.
    answer: Result<bool, String>,
    mend: &'static str,
}

/// Tries every feature that the datapath uses. Needs the rights that the agent needs.
pub fn probe() -> Vec<Feature> {
    questions().into_iter().map(Feature::from).collect()
}

impl From<Question> for Feature {
    fn from(question: Question) -> Self {
        let Question { name, needed, answer, mend } = question;
        match answer {
            Ok(true) => Self { name, available: true, needed, mend: String::new() },
            Ok(false) => Self { name, available: false, needed, mend: mend.to_owned() },
            Err(cause) => Self { name, available: false, needed, mend: format!("{cause}; {mend}") },
        }
    }
}

fn helper(helper: BpfHelper) -> Result<bool, String> {
    is_helper_supported(ProgramType::SchedClassifier, helper).map_err(|error| error.to_string())
}

fn questions() -> Vec<Question> {
    vec![
        Question {
            name: "eBPF classifiers",
            needed: true,
            answer: is_program_supported(ProgramType::SchedClassifier).map_err(|error| error.to_string()),
            mend: "run as root on a kernel with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF",
        },
        Question {
            name: "BPF file system",
            needed: true,
            answer: bpffs(),
            mend: "mount it: mount -t bpf bpf /sys/fs/bpf",
        },
        Question {
            name: "LPM trie map",
            needed: true,
            answer: is_map_supported(MapType::LpmTrie).map_err(|error| error.to_string()),
            mend: "run Linux 5.10 or newer",
        },
        Question {
            name: "ring buffer map",
            needed: true,
            answer: is_map_supported(MapType::RingBuf).map_err(|error| error.to_string()),
            mend: "run Linux 5.8 or newer",
        },
        Question {
            name: "bpf_fib_lookup",
            needed: true,
            answer: helper(BpfHelper::BPF_FUNC_fib_lookup),
            mend: "run Linux 5.10 or newer with CONFIG_INET",
        },
        Question {
            name: "bpf_redirect_neigh",
            needed: true,
            answer: helper(BpfHelper::BPF_FUNC_redirect_neigh),
            mend: "run Linux 5.10 or newer",
        },
        Question {
            name: "bpf_redirect_peer",
            needed: true,
            answer: helper(BpfHelper::BPF_FUNC_redirect_peer),
            mend: "run Linux 5.10 or newer",
        },
        Question {
            name: "LRU hash map",
            needed: true,
            answer: is_map_supported(MapType::LruHash).map_err(|error| error.to_string()),
            mend: "run Linux 5.10 or newer",
        },
        Question {
            name: "bpf_skc_lookup_tcp",
            needed: true,
            answer: helper(BpfHelper::BPF_FUNC_skc_lookup_tcp),
            mend: "run Linux 5.10 or newer with CONFIG_INET",
        },
        Question {
            name: "tcx links",
            needed: false,
            answer: Ok(sys::has_tcx()),
            mend: "nothing need be done: the agent attaches by clsact; Linux 6.6 and newer have tcx",
        },
        Question {
            name: "kernel BTF",
            needed: false,
            answer: Ok(std::path::Path::new("/sys/kernel/btf/vmlinux").exists()),
            mend: "nothing need be done: the programs do not depend on kernel types; CONFIG_DEBUG_INFO_BTF adds them",
        },
    ]
}

/// Whether a BPF file system is mounted where pins go by default.
fn bpffs() -> Result<bool, String> {
    let kind = statfs::statfs("/sys/fs/bpf").map_err(|error| format!("/sys/fs/bpf: {error}"))?;
    Ok(kind.filesystem_type() == statfs::BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lacks_says_what_to_do() {
        let question = |answer| Question { name: "x", needed: true, answer, mend: "do y" };
        assert_eq!(Feature::from(question(Ok(true))).mend, "");
        assert_eq!(Feature::from(question(Ok(false))).mend, "do y");
        assert_eq!(Feature::from(question(Err("no right".to_owned()))).mend, "no right; do y");
    }
}
