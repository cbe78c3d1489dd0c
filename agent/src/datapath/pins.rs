//! What is pinned, and how an agent takes it over from the one before.
//!
//! ```text
//! <pin dir>/links/           tcx links, see `attach`; of every version
//! <pin dir>/clsact/          marks of clsact filters, see `attach`
//! <pin dir>/cgroup/          links of the programs at sockets, see `sockets`; of every version
//! <pin dir>/v<ABI>/maps/     the maps; kept as long as the ABI is the same
//! <pin dir>/v<ABI>/programs-<digest>/   the programs of one object
//! <pin dir>/v<ABI>/settled/  a mark: an agent has filled the maps
//! ```
//!
//! Programs appear by one rename, so a set is whole or not there. A kill at any moment leaves a state from which the
//! next start goes on.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    EbpfLoader, include_bytes_aligned,
    maps::{Map, MapData, MapType},
    programs::{ProgramInfo, SchedClassifier},
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::{resource, statfs},
};
use podwire_abi::{
    ABI_VERSION, Counter, EVENT_RING_BYTES, Endpoint, EndpointKey, IpcacheEntry, MAX_ENDPOINTS, MAX_IPCACHE,
    METRIC_SLOTS, NodeConfig,
    connection::{
        Connection, ConnectionKey, FragmentKey, FragmentPorts, MAX_CONNECTIONS, MAX_FRAGMENTED,
        MAX_MASQUERADE_ADDRESSES, MAX_NON_MASQUERADE, MasqueradeKey,
    },
    maps,
    service::{
        Affinity, AffinityKey, BackendKey, Balanced, CALLERS, MAX_AFFINITY, MAX_BACKENDS, MAX_BALANCED,
        MAX_MAGLEV, MAX_PEERS, MAX_SERVICES, MaglevTable, Opening, PeerKey, Service, ServiceConfig,
        ServiceKey, Target, Tuple,
    },
};

use super::{DatapathError, attach::Hook};

pub(super) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/podwire.bpf.o"));
const OBJECT_DIGEST: &str = env!("PODWIRE_BPF_DIGEST");

/// Shape of a map: what must agree for a pinned one to be used.
struct Shape {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    entries: u32,
}

const SHAPES: [Shape; 19] = [
    Shape {
        name: maps::ENDPOINTS,
        kind: MapType::Hash,
        key: size_of::<EndpointKey>(),
        value: size_of::<Endpoint>(),
        entries: MAX_ENDPOINTS,
    },
    Shape {
        name: maps::IPCACHE,
        kind: MapType::LpmTrie,
        key: 8,
        value: size_of::<IpcacheEntry>(),
        entries: MAX_IPCACHE,
    },
    Shape { name: maps::CONFIG, kind: MapType::Array, key: 4, value: size_of::<NodeConfig>(), entries: 1 },
    Shape {
        name: maps::METRICS,
        kind: MapType::PerCpuArray,
        key: 4,
        value: size_of::<Counter>(),
        entries: METRIC_SLOTS,
    },
    Shape { name: maps::EVENTS, kind: MapType::RingBuf, key: 0, value: 0, entries: EVENT_RING_BYTES },
    connections(maps::CONNECTIONS_OUT),
    connections(maps::CONNECTIONS_IN),
    Shape {
        name: maps::FRAGMENTED,
        kind: MapType::LruHash,
        key: size_of::<FragmentKey>(),
        value: size_of::<FragmentPorts>(),
        entries: MAX_FRAGMENTED,
    },
    Shape {
        name: maps::MASQUERADE,
        kind: MapType::LpmTrie,
        key: 4 + size_of::<MasqueradeKey>(),
        value: 4,
        entries: MAX_MASQUERADE_ADDRESSES,
    },
    Shape {
        name: maps::NON_MASQUERADE,
        kind: MapType::LpmTrie,
        key: 8,
        value: 4,
        entries: MAX_NON_MASQUERADE,
    },
    Shape {
        name: maps::SERVICES,
        kind: MapType::Hash,
        key: size_of::<ServiceKey>(),
        value: size_of::<Service>(),
        entries: MAX_SERVICES,
    },
    Shape {
        name: maps::BACKENDS,
        kind: MapType::Hash,
        key: size_of::<BackendKey>(),
        value: size_of::<Target>(),
        entries: MAX_BACKENDS,
    },
    Shape {
        name: maps::SERVICE_CONFIG,
        kind: MapType::Array,
        key: 4,
        value: size_of::<ServiceConfig>(),
        entries: 1,
    },
    Shape {
        name: maps::MAGLEV,
        kind: MapType::Hash,
        key: 4,
        value: size_of::<MaglevTable>(),
        entries: MAX_MAGLEV,
    },
    Shape {
        name: maps::BALANCED,
        kind: MapType::Hash,
        key: size_of::<Tuple>(),
        value: size_of::<Balanced>(),
        entries: MAX_BALANCED,
    },
    Shape {
        name: maps::OPENING,
        kind: MapType::PerCpuArray,
        key: 4,
        value: size_of::<Opening>(),
        entries: 1,
    },
    Shape { name: maps::BALANCED_CALLERS, kind: MapType::Array, key: 4, value: 4, entries: CALLERS },
    Shape {
        name: maps::PEERS,
        kind: MapType::LruHash,
        key: size_of::<PeerKey>(),
        value: size_of::<Target>(),
        entries: MAX_PEERS,
    },
    Shape {
        name: maps::AFFINITY,
        kind: MapType::LruHash,
        key: size_of::<AffinityKey>(),
        value: size_of::<Affinity>(),
        entries: MAX_AFFINITY,
    },
];

const fn connections(name: &'static str) -> Shape {
    Shape {
        name,
        kind: MapType::Hash,
        key: size_of::<ConnectionKey>(),
        value: size_of::<Connection>(),
        entries: MAX_CONNECTIONS,
    }
}

/// The pin directory of one node.
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
    version: PathBuf,
}

impl Pins {
    /// Makes the directories. The lock is held until it is dropped: two agents must not mend at the same time.
    pub(super) fn prepare(root: &Path) -> Result<(Self, Flock<fs::File>), DatapathError> {
        let existing = root.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
        let kind = statfs::statfs(existing).map_err(|e| DatapathError::pin("examine", existing)(e.into()))?;
        if kind.filesystem_type() != statfs::BPF_FS_MAGIC {
            return Err(DatapathError::NotBpffs { path: root.to_owned() });
        }
        fs::create_dir_all(root).map_err(DatapathError::pin("make", root))?;
        let dir = fs::File::open(root).map_err(DatapathError::pin("open", root))?;
        let lock = Flock::lock(dir, FlockArg::LockExclusive)
            .map_err(|(_, e)| DatapathError::pin("lock", root)(e.into()))?;
        let pins = Self { root: root.to_owned(), version: root.join(format!("v{ABI_VERSION}")) };
        let dir = pins.maps();
        fs::create_dir_all(&dir).map_err(DatapathError::pin("make", &dir))?;
        Ok((pins, lock))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.version.join("maps")
    }

    fn programs(&self) -> PathBuf {
        self.version.join(format!("programs-{OBJECT_DIGEST}"))
    }

    fn settled(&self) -> PathBuf {
        self.version.join("settled")
    }

    /// Whether an agent has filled the maps: until then the programs that use them must not take over.
    pub(super) fn are_settled(&self) -> bool {
        self.settled().exists()
    }

    /// Marks the maps as filled.
    pub(super) fn settle(&self) -> Result<(), DatapathError> {
        let dir = self.settled();
        fs::create_dir_all(&dir).map_err(DatapathError::pin("make", &dir))
    }

    /// Opens the programs of this agent's object: those pinned by the agent before if they are the same, else freshly
    /// loaded and pinned.
    pub(super) fn programs_of_this_agent(&self) -> Result<Vec<SchedClassifier>, DatapathError> {
        self.drop_foreign_maps()?;
        if SHAPES.iter().any(|shape| !self.maps().join(shape.name).exists()) {
            remove_tree(&self.settled())?;
        }
        if !self.are_whole()? {
            self.load()?;
        }
        Hook::ALL
            .into_iter()
            .map(|hook| {
                let path = self.programs().join(hook.program());
                SchedClassifier::from_pin(&path)
                    .map_err(|source| DatapathError::Program { path, source: Box::new(source) })
            })
            .collect()
    }

    /// Opens a pinned map.
    pub(super) fn map(&self, name: &'static str) -> Result<Map, DatapathError> {
        MapData::from_pin(self.maps().join(name))
            .and_then(Map::from_map_data)
            .map_err(DatapathError::map("open", name))
    }

    /// Takes away what no agent of this version uses: other versions' maps and programs. Links keep what they run.
    pub(super) fn drop_leftovers(&self) -> Result<(), DatapathError> {
        for path in list(&self.root)? {
            if path != self.version && name_starts_with(&path, "v") {
                remove_tree(&path)?;
            }
        }
        for path in list(&self.version)? {
            if ![self.programs(), self.maps(), self.settled()].contains(&path) {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// A map of another shape cannot be ours: a new one takes its place, and the agent fills it again.
    fn drop_foreign_maps(&self) -> Result<(), DatapathError> {
        for shape in &SHAPES {
            let path = self.maps().join(shape.name);
            if path.exists() && !fits(&path, shape) {
                tracing::warn!(pin = %path.display(), "replaced: a map of another shape was pinned there");
                fs::remove_file(&path).map_err(DatapathError::pin("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Whether all programs of this object are pinned, and use the maps that are pinned.
    fn are_whole(&self) -> Result<bool, DatapathError> {
        let dir = self.programs();
        if !Hook::ALL.iter().all(|hook| dir.join(hook.program()).exists()) {
            return Ok(false);
        }
        let mut pinned = Vec::new();
        for shape in &SHAPES {
            let path = self.maps().join(shape.name);
            if !path.exists() {
                return Ok(false);
            }
            let map = MapData::from_pin(&path).map_err(DatapathError::map("open", shape.name))?;
            pinned.push(map.info().map_err(DatapathError::map("examine", shape.name))?.id());
        }
        for hook in Hook::ALL {
            let used = ProgramInfo::from_pin(dir.join(hook.program())).and_then(|info| info.map_ids());
            match used {
                Ok(Some(used)) if !used.is_empty() && used.iter().all(|id| pinned.contains(id)) => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Loads the object, with the pinned maps as far as there are, and pins its programs. What fails leaves the pins as they were.
    fn load(&self) -> Result<(), DatapathError> {
        let staging = self.version.join("staging");
        remove_tree(&staging)?;
        let absent: Vec<_> =
            SHAPES.iter().map(|shape| self.maps().join(shape.name)).filter(|pin| !pin.exists()).collect();
        let loaded = self.load_into(&staging);
        if loaded.is_err() {
            // What cannot be removed now is in nobody's way: the next start removes or uses it.
            let _ = fs::remove_dir_all(&staging);
            for pin in absent {
                let _ = fs::remove_file(pin);
            }
        }
        loaded
    }

    fn load_into(&self, staging: &Path) -> Result<(), DatapathError> {
        raise_memlock();
        fs::create_dir(staging).map_err(DatapathError::pin("make", staging))?;
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(self.maps())
            .load(OBJECT)
            .map_err(|source| DatapathError::Object { source: Box::new(source) })?;
        for hook in Hook::ALL {
            let program: &mut SchedClassifier = object
                .program_mut(hook.program())
                .and_then(|program| program.try_into().ok())
                .ok_or(DatapathError::Missing { name: hook.program() })?;
            program.load().map_err(|error| DatapathError::load(hook, &error))?;
            let path = staging.join(hook.program());
            program
                .pin(&path)
                .map_err(|error| DatapathError::pin("pin", &path)(io::Error::other(error.to_string())))?;
        }
        let dir = self.programs();
        remove_tree(&dir)?;
        fs::rename(staging, &dir).map_err(DatapathError::pin("make", &dir))
    }
}

/// Before Linux 5.11 maps count against RLIMIT_MEMLOCK. Raising it may be forbidden; where it still matters, creating
/// the maps says so.
fn raise_memlock() {
    let unlimited = resource::RLIM_INFINITY;
    if let Err(error) = resource::setrlimit(resource::Resource::RLIMIT_MEMLOCK, unlimited, unlimited) {
        tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
    }
}

fn fits(path: &Path, shape: &Shape) -> bool {
    let Ok(info) = MapData::from_pin(path).and_then(|map| map.info()) else { return false };
    info.map_type().ok() == Some(shape.kind)
        && info.key_size() as usize == shape.key
        && info.value_size() as usize == shape.value
        && info.max_entries() == shape.entries
}

fn name_starts_with(path: &Path, prefix: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(DatapathError::pin("list", dir))
}

fn remove_tree(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::pin("remove", path)(error))
        }
        _ => Ok(()),
    }
}
