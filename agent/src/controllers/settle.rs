//! Settles endpoints: pods are wired with a program that is attached quickly; when no pod is being wired it is attached as
//! it shall be in the long run. See [`crate::datapath::Datapath::add_new_endpoint`].

use std::sync::Arc;
use std::time::Duration;

use crate::core::Core;
use crate::health::Health;

/// Name of this part in `podwire status`.
const PART: &str = "settle";

/// So long must nobody have asked for a pod.
const QUIET: Duration = Duration::from_secs(2);

/// Runs for ever, in the network namespace in which the runtime was built.
pub async fn run(core: Arc<Core>, health: Arc<Health>) {
    let mut changes = core.signal().listen();
    loop {
        changes.heard().await;
        let mut left = true;
        while left {
            let before = core.adds();
            tokio::time::sleep(QUIET).await;
            if core.adds() != before {
                continue;
            }
            left = settle_while_quiet(&core, before, &health).await;
        }
    }
}

/// Returns whether something is left to do.
async fn settle_while_quiet(core: &Arc<Core>, adds: u64, health: &Health) -> bool {
    let mut errors = Vec::new();
    while core.adds() == adds {
        let core = core.clone();
        match tokio::task::spawn_blocking(move || core.settle_one()).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                health.report(PART, errors, "all endpoints settled");
                return false;
            }
            Ok(Err(error)) => errors.push(error),
            // A panic is a bug, and logged by the runtime; the endpoints work on as they are.
            Err(_) => return false,
        }
    }
    true
}
