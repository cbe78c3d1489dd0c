//! "Something has changed": told by whoever sees it, heard by every controller, which then looks at everything.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Changes come in bursts (a pod is several); one look after the burst is enough.
const SETTLE: Duration = Duration::from_millis(20);

/// The telling side.
#[derive(Clone, Debug)]
pub struct Signal(Arc<watch::Sender<()>>);

impl Default for Signal {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(())))
    }
}

impl Signal {
    /// Tells.
    pub fn notify(&self) {
        self.0.send_replace(());
    }

    /// A hearing side. It hears at once, so that a new controller looks for the first time.
    pub fn listen(&self) -> Listener {
        let mut receiver = self.0.subscribe();
        receiver.mark_changed();
        Listener(receiver)
    }
}

/// The hearing side.
#[derive(Debug)]
pub struct Listener(watch::Receiver<()>);

impl Listener {
    /// Waits for a change, and a moment longer for what belongs to it. Waits for ever when nobody can tell any more.
    pub async fn heard(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(SETTLE).await;
        self.0.mark_unchanged();
    }
}
