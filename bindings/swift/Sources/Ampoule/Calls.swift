import Dispatch
import Foundation
internal import AmpouleNative

/// Ends the blocking calls that it was given to, from any thread.
public final class CancelToken: Sendable {
    let token = AmpouleNative.CancelToken()

    /// A token that has not been cancelled.
    public init() {}

    /// Ends the calls that have this token, and those to come, with ``AmpouleError/cancelled(_:)``.
    public func cancel() { token.cancel() }

    /// Whether it has been cancelled.
    public var isCancelled: Bool { token.isCancelled() }
}

/// Seconds as the library takes them: whole milliseconds, of which one that begins counts.
func milliseconds(_ timeout: TimeInterval?) -> UInt64? {
    guard let timeout, !timeout.isNaN else { return nil }
    return UInt64(exactly: (max(timeout, 0) * 1000).rounded(.up)) ?? UInt64(Int64.max)
}

/// Refuses what uniffi cannot count: it has 31 bits for the bytes of a text, or of a batch with four more a text, and ends the process
/// where they do not do.
func countable(_ bytes: Int) throws(AmpouleError) {
    guard bytes <= Int32.max else { throw .fixInput("a text or batch of \(bytes) bytes: give it in parts, each below 2 GiB") }
}

func countable(_ texts: [String]) throws(AmpouleError) {
    try countable(texts.reduce(4) { $0 + 4 + $1.utf8.count })
}

/// A queue to block on. Dispatch gives each serial queue a thread even where an app's own work keeps all others busy.
func blockingQueue() -> DispatchQueue {
    DispatchQueue(label: "rs.ampoule", autoreleaseFrequency: .workItem)
}

/// Runs a blocking call on a queue, and returns when it has ended; `stop` is called at once when the task is cancelled.
func running<T: Sendable>(
    on queue: DispatchQueue,
    stop: @escaping @Sendable () -> Void,
    _ call: @escaping @Sendable () throws -> T
) async throws -> T {
    do {
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                queue.async { continuation.resume(with: Result { try native(call) }) }
            }
        } onCancel: {
            stop()
        }
    } catch AmpouleError.cancelled where Task.isCancelled {
        throw CancellationError()
    }
}

/// One call with a token of its own, one of a few at once.
func cancellable<T: Sendable>(_ call: @escaping @Sendable (AmpouleNative.CancelToken) throws -> T) async throws -> T {
    let queue = try await Queues.all.take()
    defer { Queues.all.give(back: queue) }
    let token = AmpouleNative.CancelToken()
    return try await running(on: queue, stop: { token.cancel() }) { try call(token) }
}

/// How a GPU stands once it is ready or has failed. It is none of the calls that compute, and has a queue of its own to wait on.
func warmedUp(
    isolation: isolated (any Actor)?,
    _ first: GpuReport?,
    _ onProgress: (GpuReport) -> Void,
    _ wait: @escaping @Sendable (UInt32, AmpouleNative.CancelToken) throws -> AmpouleNative.GpuReport?
) async throws -> GpuReport? {
    let (queue, token) = (blockingQueue(), AmpouleNative.CancelToken())
    var found = first
    while let report = found {
        onProgress(report)
        guard report.state == .warming else { break }
        let done = UInt32(report.warmUpDone)
        found = try await running(on: queue, stop: { token.cancel() }) { try wait(done, token).map(GpuReport.init) }
    }
    return found
}

/// What is opened for a task that was cancelled meanwhile is freed here: nobody gets it.
func opened<T: Sendable>(_ open: @escaping @Sendable () throws -> T) async throws -> T {
    let model = try await cancellable { _ in try open() }
    try Task.checkCancellation()
    return model
}

/// The queues of all calls, whoever makes them: each call computes on its thread and its model's, so a few at once are all that a machine has
/// use for. Who waits for one waits in no thread, in turn, until it is cancelled.
final class Queues: @unchecked Sendable {
    static let all = Queues(4)

    /// Its fields belong to the lock.
    private final class Waiter: @unchecked Sendable {
        var continuation: CheckedContinuation<DispatchQueue, any Error>?
        var isCancelled = false
    }

    private let lock = NSLock()
    private var free: [DispatchQueue]
    private var waiters: [Waiter] = []

    private init(_ count: Int) {
        free = (0..<count).map { _ in blockingQueue() }
    }

    func take() async throws -> DispatchQueue {
        let waiter = Waiter()
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                let now: Result<DispatchQueue, any Error>? = lock.withLock {
                    if waiter.isCancelled { return .failure(CancellationError()) }
                    if let queue = free.popLast() { return .success(queue) }
                    waiter.continuation = continuation
                    waiters.append(waiter)
                    return nil
                }
                if let now { continuation.resume(with: now) }
            }
        } onCancel: {
            let continuation = lock.withLock {
                waiter.isCancelled = true
                waiters.removeAll { $0 === waiter }
                return waiter.continuation.take()
            }
            continuation?.resume(throwing: CancellationError())
        }
    }

    func give(back queue: DispatchQueue) {
        let next = lock.withLock {
            guard !waiters.isEmpty else {
                free.append(queue)
                return nil as CheckedContinuation<DispatchQueue, any Error>?
            }
            return waiters.removeFirst().continuation.take()
        }
        next?.resume(returning: queue)
    }
}
