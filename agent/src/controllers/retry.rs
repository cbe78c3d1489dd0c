//! When a run that failed is repeated.

use std::time::Duration;

/// Pause before a run that failed is repeated, if nothing changes earlier.
const RETRY: Duration = Duration::from_secs(5);

/// Ends when it is time to repeat a run that failed; after one that did not fail, never.
pub(super) async fn retry(failed: bool) {
    if failed {
        tokio::time::sleep(RETRY).await;
    } else {
        std::future::pending::<()>().await;
    }
}
