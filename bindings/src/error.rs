//! What went wrong, by what an app can do about it.

use std::fmt;

use ampoule::ErrorKind;

/// What went wrong, by what an app can do about it. A message says what, where, expected and found; none holds any of a text.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Error)]
#[uniffi(flat_error)]
pub enum AmpouleError {
    /// The bundle is not there, cannot be read, or is damaged: fetch it again.
    FetchBundle(String),
    /// The bundle is sound, but not for this version of the library or for this task: update the app, or open another bundle.
    UpdateApp(String),
    /// The device or kernel that was asked for is not to be had here: open the model on the processor, or with the kernel that is named.
    UseCpu(String),
    /// An option or a text cannot be used as it is: mend it.
    FixInput(String),
    /// The call was cancelled, or its time was over. The model stays usable.
    Cancelled(String),
    /// The model or stream was closed before the call: open it again.
    Closed(String),
    /// A defect of this library.
    Internal(String),
}

pub(crate) type Result<T> = std::result::Result<T, AmpouleError>;

impl AmpouleError {
    /// A panic's own message may quote the text, so it is not told.
    pub(crate) fn panicked() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        AmpouleError::Internal(format!("a defect of ampoule {version} ended the call; please report what was done"))
    }

    pub(crate) fn closed(what: &str) -> Self {
        AmpouleError::Closed(format!("the {what} is closed; open it again"))
    }
}

impl From<ampoule::Error> for AmpouleError {
    fn from(error: ampoule::Error) -> Self {
        let message = error.to_string();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::Corrupt => AmpouleError::FetchBundle(message),
            ErrorKind::Incompatible => AmpouleError::UpdateApp(message),
            ErrorKind::DeviceUnavailable => AmpouleError::UseCpu(message),
            ErrorKind::InvalidInput => AmpouleError::FixInput(message),
            ErrorKind::Cancelled => AmpouleError::Cancelled(message),
            _ => AmpouleError::Internal(message),
        }
    }
}

impl fmt::Display for AmpouleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AmpouleError::FetchBundle(message)
            | AmpouleError::UpdateApp(message)
            | AmpouleError::UseCpu(message)
            | AmpouleError::FixInput(message)
            | AmpouleError::Cancelled(message)
            | AmpouleError::Closed(message)
            | AmpouleError::Internal(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for AmpouleError {}
