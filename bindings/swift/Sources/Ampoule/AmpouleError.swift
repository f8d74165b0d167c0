import Foundation
internal import AmpouleNative

/// What went wrong, by what an app can do about it. A message says what, where, expected and found; none holds any of a text.
public enum AmpouleError: Error, Equatable, Sendable {
    /// The bundle is not there, cannot be read, or is damaged: fetch it again.
    case fetchBundle(String)
    /// The bundle is sound, but not for this version of the library or for this task: update the app, or open another bundle.
    case updateApp(String)
    /// The device or kernel that was asked for is not to be had here: open the model on the processor, or with the kernel that is named.
    case useCpu(String)
    /// An option or a text cannot be used as it is: mend it.
    case fixInput(String)
    /// The call's token was cancelled, or its time was over; the model stays usable. A task that is cancelled gets `CancellationError`
    /// instead.
    case cancelled(String)
    /// The model was closed before the call: open it again.
    case closed(String)
    /// A defect of this library.
    case `internal`(String)

    /// What happened, for a log or a developer.
    public var message: String {
        switch self {
        case .fetchBundle(let message), .updateApp(let message), .useCpu(let message), .fixInput(let message),
            .cancelled(let message), .closed(let message), .internal(let message):
            return message
        }
    }
}

extension AmpouleError: LocalizedError {
    /// The message.
    public var errorDescription: String? { message }
}

extension AmpouleError {
    init(_ error: AmpouleNative.AmpouleError) {
        switch error {
        case .FetchBundle(let message): self = .fetchBundle(message)
        case .UpdateApp(let message): self = .updateApp(message)
        case .UseCpu(let message): self = .useCpu(message)
        case .FixInput(let message): self = .fixInput(message)
        case .Cancelled(let message): self = .cancelled(message)
        case .Closed(let message): self = .closed(message)
        case .Internal(let message): self = .internal(message)
        }
    }
}

/// Runs a call of the library; its errors become ours.
func native<T>(_ call: () throws -> T) throws(AmpouleError) -> T {
    do {
        return try call()
    } catch let error as AmpouleError {
        throw error
    } catch let error as AmpouleNative.AmpouleError {
        throw AmpouleError(error)
    } catch {
        // Of uniffi itself. Its message is not ours, and might quote the text.
        throw .internal("a defect of ampoule ended the call; please report what was done")
    }
}
