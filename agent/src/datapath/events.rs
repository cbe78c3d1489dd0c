//! The ring buffer of events as an async stream.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use aya::maps::{Map, MapData, RingBuf};
use futures::Stream;
use podwire_abi::maps;
use tokio::io::unix::AsyncFd;

use super::{DatapathError, FlowEvent, flow::Clock};

/// Events of the datapath as they happen. Ends never; dropping it lets another reader open one.
pub struct EventStream {
    ring: AsyncFd<RingBuf<MapData>>,
    clock: Clock,
    _taken: Taken,
}

/// Marks the ring as read by somebody while it lives.
struct Taken(Arc<AtomicBool>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl EventStream {
    pub(super) fn open(map: Map, taken: Arc<AtomicBool>) -> Result<Self, DatapathError> {
        if taken.swap(true, Ordering::AcqRel) {
            return Err(DatapathError::EventsTaken);
        }
        let taken = Taken(taken);
        let ring = RingBuf::try_from(map).map_err(DatapathError::map("use", maps::EVENTS))?;
        // SAFETY: the ring answers the same descriptor, its map's, for as long as it lives.
        let ring = unsafe { AsyncFd::register_with_interest(ring, tokio::io::Interest::READABLE) }
            .map_err(|error| DatapathError::Events { source: error.into() })?;
        Ok(Self { ring, clock: Clock::now(), _taken: taken })
    }
}

impl Stream for EventStream {
    type Item = Result<FlowEvent, DatapathError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            while let Some(record) = this.ring.get_mut().next() {
                match FlowEvent::decode(&record, this.clock) {
                    Ok(event) => return Poll::Ready(Some(Ok(event))),
                    Err(error) => tracing::warn!(%error, "skipped an event"),
                }
            }
            // Empty. Forget the readiness that was seen, then look once more: what comes later makes it ready anew.
            ready!(this.ring.poll_read_ready_mut(context))
                .map_err(|source| DatapathError::Events { source })?
                .clear_ready();
        }
    }
}
