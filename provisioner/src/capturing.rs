//! A capture that runs beside what it captures.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use podwire_conformance::Tap;
use podwire_conformance::capture::{self, CaptureError, CaptureOptions, CaptureStats};
use tokio::sync::oneshot;

use crate::error::{Failure, OrFailure};

/// A capture that runs in a thread of its own.
pub(crate) struct Capturing {
    stop: Arc<AtomicBool>,
    thread: tokio::task::JoinHandle<Result<CaptureStats, CaptureError>>,
}

impl Capturing {
    /// Returns once everything that is sent is captured.
    pub(crate) async fn begin(
        taps: Vec<Box<dyn Tap>>,
        options: CaptureOptions,
        file: &Path,
    ) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, begun) = oneshot::channel();
        let (file, told): (PathBuf, _) = (file.to_owned(), Arc::clone(&stop));
        let thread = tokio::task::spawn_blocking(move || {
            let say = move || {
                // Nobody waits any more only if the work has failed already.
                let _ = ready.send(());
            };
            capture::run(taps, &options, &file, &told, say)
        });
        let capturing = Self { stop, thread };
        if begun.await.is_ok() {
            return Ok(capturing);
        }
        capturing.end().await?;
        Err(Failure::new("capture", "it ended at once", "report this as a bug"))
    }

    /// Ends it; what was sent before is in the file.
    pub(crate) async fn end(self) -> Result<CaptureStats, Failure> {
        self.stop.store(true, Ordering::Release);
        let thing = "capture";
        let ended = self.thread.await.or_failure(thing, "report this as a bug")?;
        ended.or_failure(thing, "make its directory writable, and free space there")
    }
}
