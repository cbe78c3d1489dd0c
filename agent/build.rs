//! Compiles the eBPF programs and hands the object to the crate.
//!
//! From source where the toolchain stands (bpf-linker, and rust-src of the compiler's own version); else the object
//! kept in `bpf/prebuilt`, if it was made of these very sources. `PODWIRE_BPF` overrides: `source` and `prebuilt` force
//! one way, `update` compiles and refreshes `bpf/prebuilt`, `check` compiles and fails if `bpf/prebuilt` differs.

use std::{
    env, fmt,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use sha2::{Digest, Sha256};

const OBJECT: &str = "podwire.bpf.o";
const DIGEST: &str = "podwire.bpf.sha256";
const TARGET: &str = "bpfel-unknown-none";

const HOW_TO_GET_THE_TOOLCHAIN: &str = "`make setup` installs both; by hand: `cargo install bpf-linker --version \
     0.10.3` and `rustup component add rust-src`";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("error: eBPF programs: {cause}");
            ExitCode::FAILURE
        }
    }
}

/// What to do, from `PODWIRE_BPF`.
#[derive(Clone, Copy, PartialEq)]
enum Wish {
    Auto,
    Source,
    Prebuilt,
    Update,
    Check,
}

fn run() -> Result<(), String> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    let root = root.canonicalize().map_err(|e| failed("resolve", &root, e))?;
    let out = PathBuf::from(variable("OUT_DIR")?);
    let wish = wish()?;
    let sources = sources(&root)?;
    for path in &sources {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    // Directories too, so that a new file counts.
    for name in ["bpf/abi/src", "bpf/programs/src", "bpf/prebuilt"] {
        println!("cargo::rerun-if-changed={}", root.join(name).display());
    }
    let digest = digest(&root, &sources)?;
    let prebuilt = Prebuilt::at(root.join("bpf/prebuilt"));
    let object = match (wish, toolchain()) {
        (Wish::Prebuilt, _) => prebuilt.object_of(&digest)?,
        (_, Ok(linker)) => compile(&root, &out, &linker)?,
        (Wish::Auto, Err(lacking)) => prebuilt
            .object_of(&digest)
            .map_err(|cause| format!("{lacking}, and {cause}. {HOW_TO_GET_THE_TOOLCHAIN}"))?,
        (_, Err(lacking)) => return Err(format!("{lacking}. {HOW_TO_GET_THE_TOOLCHAIN}")),
    };
    match wish {
        Wish::Update => prebuilt.write(&object, &digest)?,
        Wish::Check if prebuilt.object_of(&digest)? != object => {
            return Err(format!(
                "{} is not what these sources compile to with this compiler; refresh it: PODWIRE_BPF=update cargo \
                 check -p podwire-agent",
                prebuilt.dir.join(OBJECT).display()
            ));
        }
        _ => {}
    }
    let path = out.join(OBJECT);
    fs::write(&path, &object).map_err(|e| failed("write", &path, e))?;
    println!("cargo::rustc-env=PODWIRE_BPF_DIGEST={}", &hex(&Sha256::digest(&object))[..16]);
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("variable {name}: {e}"))
}

fn failed(what: &str, path: &Path, cause: impl fmt::Display) -> String {
    format!("cannot {what} {}: {cause}", path.display())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn wish() -> Result<Wish, String> {
    println!("cargo::rerun-if-env-changed=PODWIRE_BPF");
    match env::var("PODWIRE_BPF").as_deref() {
        Err(_) | Ok("" | "auto") => Ok(Wish::Auto),
        Ok("source") => Ok(Wish::Source),
        Ok("prebuilt") => Ok(Wish::Prebuilt),
        Ok("update") => Ok(Wish::Update),
        Ok("check") => Ok(Wish::Check),
        Ok(other) => Err(format!("PODWIRE_BPF={other}: choose auto, source, prebuilt, update or check")),
    }
}

/// Every file of ours that the object is made of, in a fixed order.
fn sources(root: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for member in ["bpf/abi", "bpf/programs"] {
        files.push(root.join(member).join("Cargo.toml"));
        let dir = root.join(member).join("src");
        for entry in fs::read_dir(&dir).map_err(|e| failed("list", &dir, e))? {
            files.push(entry.map_err(|e| failed("list", &dir, e))?.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Digest of the sources and of the versions of the crates that are compiled with them.
fn digest(root: &Path, sources: &[PathBuf]) -> Result<String, String> {
    let mut hash = Sha256::new();
    for path in sources {
        let name = path.strip_prefix(root).unwrap_or(path);
        let content = fs::read(path).map_err(|e| failed("read", path, e))?;
        hash.update(format!("{} {}\n", name.display(), content.len()));
        hash.update(&content);
    }
    let lock = root.join("Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let lock = fs::read_to_string(&lock).map_err(|e| failed("read", &lock, e))?;
    for package in lock.split("[[package]]\n").filter(|package| package.starts_with("name = \"aya-ebpf")) {
        for line in package.lines().filter(|line| line.starts_with("name") || line.starts_with("version")) {
            hash.update(format!("{line}\n"));
        }
    }
    Ok(hex(&hash.finalize()))
}

/// The object kept in the repository, beside the digest of the sources it was made of.
struct Prebuilt {
    dir: PathBuf,
}

impl Prebuilt {
    fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The object, if it was made of the sources with this digest.
    fn object_of(&self, digest: &str) -> Result<Vec<u8>, String> {
        let path = self.dir.join(DIGEST);
        let recorded = fs::read_to_string(&path).map_err(|e| failed("read", &path, e))?;
        if recorded.split_whitespace().next() != Some(digest) {
            return Err(format!("{} was made of other sources", self.dir.join(OBJECT).display()));
        }
        let path = self.dir.join(OBJECT);
        fs::read(&path).map_err(|e| failed("read", &path, e))
    }

    fn write(&self, object: &[u8], digest: &str) -> Result<(), String> {
        fs::create_dir_all(&self.dir).map_err(|e| failed("make", &self.dir, e))?;
        for (name, content) in [(OBJECT, object), (DIGEST, format!("{digest}  sources\n").as_bytes())] {
            let path = self.dir.join(name);
            // Only when it differs: the file's time is what makes cargo run this again.
            if fs::read(&path).ok().as_deref() != Some(content) {
                fs::write(&path, content).map_err(|e| failed("write", &path, e))?;
            }
        }
        Ok(())
    }
}

/// bpf-linker's path, if all that compiling takes is there; else what is lacking.
fn toolchain() -> Result<PathBuf, String> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    let linker = env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|dir| dir.join("bpf-linker"))
        .find(|file| file.is_file())
        .ok_or("bpf-linker is not installed")?;
    let library = sysroot()?.join("lib/rustlib/src/rust/library/Cargo.lock");
    if library.is_file() {
        Ok(linker)
    } else {
        Err(format!("rust-src is not installed ({})", library.display()))
    }
}

fn sysroot() -> Result<PathBuf, String> {
    let rustc = variable("RUSTC")?;
    let output =
        Command::new(&rustc).args(["--print", "sysroot"]).output().map_err(|e| format!("{rustc}: {e}"))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Compiles the object with a cargo of its own, free of what the outer build is configured to.
fn compile(root: &Path, out: &Path, linker: &Path) -> Result<Vec<u8>, String> {
    let target_dir = out.join("bpf-target");
    let cargo_home = env::var("CARGO_HOME")
        .or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")))
        .unwrap_or_default();
    // The object must not depend on where this checkout, the compiler and the registry lie.
    let flags = [
        format!("-Clinker={}", linker.display()),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("--remap-path-prefix={}=/podwire", root.display()),
        format!("--remap-path-prefix={}=/rust", sysroot()?.display()),
        format!("--remap-path-prefix={cargo_home}=/cargo"),
        format!("--remap-path-prefix={}=/out", target_dir.display()),
    ];
    let cargo = |offline: bool| {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let outer = name.starts_with("CARGO_PROFILE_")
                || name.starts_with("CARGO_BUILD_")
                || name.starts_with("CARGO_TARGET_")
                || matches!(
                    &*name,
                    "CARGO_ENCODED_RUSTFLAGS" | "RUSTFLAGS" | "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER"
                );
            if outer {
                command.env_remove(name);
            }
        }
        command
            .current_dir(root)
            .args(["build", "--package", "podwire-bpf", "--release", "--locked", "-Zbuild-std=core"])
            .args(["--target", TARGET])
            .args(offline.then_some("--offline"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env("CARGO_TARGET_DIR", &target_dir)
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_LTO", "true")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
            // A counter wraps; and a check that cannot panic here only costs instructions.
            .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false")
            .output()
            .map_err(|e| format!("cannot run cargo: {e}"))
    };
    // Everything is mostly there already; the registry is asked only if it is not.
    let mut output = cargo(true)?;
    if !output.status.success() {
        output = cargo(false)?;
    }
    if !output.status.success() {
        return Err(format!(
            "compiling bpf/programs failed (PODWIRE_BPF=prebuilt would use the kept object):\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let object = target_dir.join(TARGET).join("release/podwire-bpf");
    let content = fs::read(&object).map_err(|e| failed("read", &object, e))?;
    portable(&content).map_err(|e| failed("strip", &object, e))
}

/// The object without what tells where it was built: the same sources must give the same bytes on every machine.
///
/// DWARF goes, for it has the paths of the compiler's library (BTF, which the kernel reads, stays). And a mangled name has a
/// hash of those paths, so it is written as a person would.
fn portable(object: &[u8]) -> Result<Vec<u8>, object::build::Error> {
    let mut elf = object::build::elf::Builder::read(object)?;
    for section in &mut elf.sections {
        let name = String::from_utf8_lossy(&section.name);
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_");
    }
    for symbol in &mut elf.symbols {
        // A section's symbol goes with its section.
        let name = String::from_utf8_lossy(&symbol.name);
        if let Ok(readable) = rustc_demangle::try_demangle(&name) {
            symbol.name = format!("{readable:#}").into_bytes().into();
        }
    }
    // The linker keeps both kinds of names in one section, the builder wants two.
    let names = elf.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    elf.write(&mut stripped)?;
    Ok(stripped)
}
