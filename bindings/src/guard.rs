//! What stands around every export: panics end here, and what is open is counted.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{AmpouleError, Result};

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; a panic in it becomes an error with a fixed message, and prints nothing, since its message may quote the text.
pub(crate) fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    silence_panics();
    let was_inside = IS_INSIDE.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    IS_INSIDE.set(was_inside);
    result.unwrap_or_else(|_| Err(AmpouleError::panicked()))
}

/// Panics of other code, where this is not the only Rust in the library, go on to whoever looked at them before.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            let is_ours = IS_INSIDE.get() || std::thread::current().name().is_some_and(|n| n.starts_with("ampoule-"));
            if !is_ours {
                before(panic);
            }
        }));
    });
}

static LIVE: AtomicU64 = AtomicU64::new(0);

pub(crate) fn live() -> u64 {
    LIVE.load(Ordering::Relaxed)
}

/// Counts its holder among what is open.
pub(crate) struct Live;

impl Live {
    pub(crate) fn new() -> Self {
        LIVE.fetch_add(1, Ordering::Relaxed);
        Live
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    const CANARY: &str = "zyxquell";

    #[test]
    fn a_panic_is_an_error_that_says_nothing_of_it_and_others_panics_are_let_be() {
        static SAID: Mutex<String> = Mutex::new(String::new());
        set_hook(Box::new(|panic| SAID.lock().unwrap().push_str(&panic.to_string())));
        let text = format!("{CANARY} é");
        let slice = |at: usize| text[..at].len();
        for wrong in [
            guarded(|| Ok(slice(CANARY.len() + 2))),
            guarded(|| {
                std::thread::scope(|scope| {
                    let of_pool = std::thread::Builder::new().name("ampoule-7".to_owned());
                    let joined = of_pool.spawn_scoped(scope, || slice(CANARY.len() + 2)).unwrap().join();
                    joined.map_err(|payload| std::panic::resume_unwind(payload))
                })
            }),
            guarded(|| guarded(|| panic!("{CANARY}"))),
        ] {
            let error = wrong.unwrap_err();
            assert_eq!(error, AmpouleError::panicked());
            assert!(!format!("{error} {error:?}").contains(CANARY));
        }
        assert_eq!(*SAID.lock().unwrap(), "");
        assert_eq!(guarded(|| Ok(7)), Ok(7));
        std::thread::spawn(|| panic!("another's")).join().unwrap_err();
        assert!(SAID.lock().unwrap().contains("another's"));
    }
}
