/// Why a capture cannot be read. The file's name is the caller's to add.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The operating system refused.
    #[error("cannot be opened: {0}")]
    Io(#[from] std::io::Error),
    /// A directory, a pipe or a device.
    #[error("not a regular file: captures are read through a memory map, so save it to a file first")]
    NotAFile,
    /// Zero bytes.
    #[error("the file is empty: no capture was written to it")]
    Empty,
    /// The file ends inside its own header.
    #[error("the file ends after {len} bytes, inside its header: no packet can be read from it")]
    HeaderCut {
        /// Bytes there are.
        len: usize,
    },
    /// Not pcap, not pcapng.
    #[error("not a capture: it begins with {:02x} {:02x} {:02x} {:02x}, neither pcap nor pcapng", magic[0], magic[1], magic[2], magic[3])]
    Unrecognised {
        /// The first four bytes.
        magic: [u8; 4],
    },
    /// A compressed file.
    #[error("the file is {name}-compressed: decompress it with {tool} first")]
    Compressed {
        /// Compression format.
        name: &'static str,
        /// Tool that undoes it.
        tool: &'static str,
    },
    /// A pcap dialect that is recognised but not read.
    #[error("the file is in the {name} format: rewrite it with `editcap -F pcapng OLD NEW`")]
    Variant {
        /// Name of the dialect.
        name: &'static str,
    },
    /// A pcapng major version other than 1.
    #[error("the section at byte {offset} is pcapng version {major}.{minor}; version 1 is read")]
    Version {
        /// Where the section begins.
        offset: u64,
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// A length or reference that cannot be true.
    #[error("the file is corrupt at byte {offset}: {what}")]
    Corrupt {
        /// Where the broken record begins.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// More interface descriptions than any capture has.
    #[error("the file describes more than {limit} interfaces: it is corrupt or hostile")]
    TooManyInterfaces {
        /// The limit.
        limit: usize,
    },
}
