//! Calls that are cancelled, and entities that arrive while a long text is computed.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::entity::{Entity, Place};
use crate::error::{AmpouleError, Result};
use crate::guard::{Live, guarded};
use crate::models::Open;

/// Ends the calls that it was given to, from any thread.
#[derive(Default, uniffi::Object)]
pub struct CancelToken(pub(crate) ampoule::CancelToken);

#[uniffi::export]
impl CancelToken {
    /// A token that has not been cancelled.
    #[uniffi::constructor]
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that is cancelled with this one, and by itself.
    pub fn child(&self) -> CancelToken {
        CancelToken(self.0.child())
    }

    /// Ends the calls that have this token, and those to come, as [`AmpouleError::Cancelled`].
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// Whether it has been cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Entities of one text that arrive while it is computed.
#[derive(uniffi::Object)]
pub struct EntityStream {
    arriving: Mutex<Arriving>,
    cancel: ampoule::CancelToken,
    _live: Live,
}

struct Arriving {
    entities: Receiver<Result<Entity>>,
    /// That which came after entities that were taken.
    error: Option<AmpouleError>,
}

impl EntityStream {
    pub(crate) fn start(
        open: &Open<ampoule::Extractor>,
        text: String,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<Self> {
        let cancel = cancel.map(|token| token.0.child()).unwrap_or_default();
        let call = open.begin(Some(cancel.clone()), timeout_ms)?;
        let (sender, entities) = channel();
        let compute = move || {
            let result = guarded(|| Ok(send(call.model(), &text, &sender)?));
            // Before the end is told, so that whoever hears of it finds nothing running.
            drop(call);
            if let Err(error) = result {
                // Nobody may wait for it any more.
                let _ = sender.send(Err(error));
            }
        };
        std::thread::Builder::new()
            .name("ampoule-stream".to_owned())
            .spawn(compute)
            .map_err(|e| AmpouleError::Internal(format!("cannot start a thread: {e}")))?;
        Ok(EntityStream { arriving: Mutex::new(Arriving { entities, error: None }), cancel, _live: Live::new() })
    }
}

/// Hands over a text's entities as they are found, while somebody waits for them.
fn send(model: &ampoule::Extractor, text: &str, sender: &Sender<Result<Entity>>) -> ampoule::Result<()> {
    let mut place = Place::default();
    model.extract_each(text, |entity| match sender.send(Ok(place.locate(text, &entity))) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    })
}

#[uniffi::export]
impl EntityStream {
    /// The next entities, in order: waits for one, and gives those that have arrived by then. None at the end of the text.
    ///
    /// An error ends the stream.
    pub fn next(&self) -> Result<Option<Vec<Entity>>> {
        guarded(|| {
            let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(error) = arriving.error.take() {
                return Err(error);
            }
            let Ok(first) = arriving.entities.recv() else { return Ok(None) };
            let mut found = vec![first?];
            while let Ok(next) = arriving.entities.try_recv() {
                match next {
                    Ok(entity) => found.push(entity),
                    Err(error) => arriving.error = Some(error),
                }
            }
            Ok(Some(found))
        })
    }

    /// Stops computing; the next call of `next` ends as [`AmpouleError::Cancelled`], or gives what had arrived before.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }
}

impl Drop for EntityStream {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
