import Foundation
internal import AmpouleNative

/// An open model. What it does may be asked from any thread or task: what is `async` computes elsewhere, and stops when its task is
/// cancelled; what is named `...Blocking` computes where it is called, the main thread included, which then waits.
///
/// A model that nothing holds any more is closed by itself; calls that run go on.
public protocol AmpouleModel: AnyObject, Sendable {
    /// The same model as an object whose calls are counted by themselves, so that ``computed`` tells of one result, or of some. To close it
    /// closes it alone; with the model all such are closed.
    func counted() -> Self

    /// Tokens that the calls of this object came to, by device. A call counts once it has ended, however it did.
    var computed: Computed { get }

    /// Where it computes, and what it holds.
    ///
    /// - Throws: ``AmpouleError/closed(_:)``
    func report() throws(AmpouleError) -> ModelReport

    /// Computes the golden cases of the model's bundle and compares the answers, which takes as long as a dozen short texts; nil where the
    /// bundle has no cases.
    ///
    /// - Throws: ``AmpouleError/useCpu(_:)`` where an answer is wrong, which says what to try; ``AmpouleError/closed(_:)``
    func selfCheckBlocking() throws(AmpouleError) -> ModelCheck?

    /// Waits until the model's GPU is ready or has failed, and says how it stands; nil where it has none.
    ///
    /// - Parameters:
    ///   - isolation: where the caller is, an actor or none.
    ///   - onProgress: hears how it stands now, and of all that follows, there.
    /// - Throws: ``AmpouleError/closed(_:)``; `CancellationError` where the task was cancelled.
    func warmUp(isolation: isolated (any Actor)?, _ onProgress: (GpuReport) -> Void) async throws -> GpuReport?

    /// Frees the memory that is kept for the next call: for when the system asks for memory.
    ///
    /// - Throws: ``AmpouleError/closed(_:)``
    func trim() throws(AmpouleError)

    /// Closes the model: later calls throw ``AmpouleError/closed(_:)``, running ones go on, and its memory is freed after the last.
    func close()
}

/// Finds entities in notes of any length.
public final class Extractor: AmpouleModel {
    private let model: AmpouleNative.Extractor
    /// The labels that entities can have.
    public let labels: [String]

    private init(_ model: AmpouleNative.Extractor, _ labels: [String]) {
        self.model = model
        self.labels = labels
    }

    /// Opens a bundle of the task `token-classification`.
    ///
    /// - Throws: ``AmpouleError/fetchBundle(_:)``, ``AmpouleError/updateApp(_:)``, ``AmpouleError/useCpu(_:)``,
    ///   ``AmpouleError/fixInput(_:)``; `CancellationError` where the task was cancelled.
    public static func open(_ source: BundleSource, options: OpenOptions = OpenOptions()) async throws -> Extractor {
        try await opened { try openBlocking(source, options: options) }
    }

    /// The same where it is called.
    public static func openBlocking(
        _ source: BundleSource,
        options: OpenOptions = OpenOptions()
    ) throws(AmpouleError) -> Extractor {
        try Ampoule.native {
            let model = try AmpouleNative.Extractor.open(source: source.native(), options: options.native())
            return Extractor(model, try model.labels())
        }
    }

    /// The entities of a text, in order.
    ///
    /// - Throws: ``AmpouleError/closed(_:)``; `CancellationError` where the task was cancelled.
    public func extract(_ text: String) async throws -> [Entity] {
        let model = model
        return try await cancellable {
            try countable(text.utf8.count)
            return located(try model.extract(text: text, cancel: $0), in: text)
        }
    }

    /// The entities of several texts, computed together.
    ///
    /// - Throws: ``AmpouleError/closed(_:)``; `CancellationError` where the task was cancelled.
    public func extractAll(_ texts: [String]) async throws -> [[Entity]] {
        let model = model
        return try await cancellable { token in
            try countable(texts)
            return zip(try model.extractBatch(texts: texts, cancel: token), texts).map { located($0, in: $1) }
        }
    }

    /// The entities of a text where it is called, until it is cancelled or its time is over.
    ///
    /// - Parameters:
    ///   - text: of any length.
    ///   - cancel: ends the call from another thread.
    ///   - timeout: seconds after which the call ends.
    /// - Throws: ``AmpouleError/cancelled(_:)``, ``AmpouleError/closed(_:)``
    public func extractBlocking(
        _ text: String,
        cancel: CancelToken? = nil,
        timeout: TimeInterval? = nil
    ) throws(AmpouleError) -> [Entity] {
        try countable(text.utf8.count)
        let found = try Ampoule.native { try model.extract(text: text, cancel: cancel?.token, timeoutMs: milliseconds(timeout)) }
        return located(found, in: text)
    }

    /// The entities of a long text, window by window while it is computed.
    public func entities(in text: String) -> Entities {
        let model = model
        return Entities { Reading(model, text) }
    }

    /// The same model as an object whose calls are counted by themselves, so that ``computed`` tells of one result, or of some.
    public func counted() -> Extractor { Extractor(model.counted(), labels) }

    /// Tokens that the calls of this object came to, by device. A call counts once it has ended, however it did.
    public var computed: Computed { Computed(model.computed()) }

    /// Where it computes, and what it holds.
    public func report() throws(AmpouleError) -> ModelReport { ModelReport(try Ampoule.native(model.report)) }

    /// Computes the golden cases of the model's bundle and compares the answers; nil where it has none.
    public func selfCheckBlocking() throws(AmpouleError) -> ModelCheck? { try Ampoule.native(model.selfCheck).map(ModelCheck.init) }

    /// Waits until the model's GPU is ready or has failed, and says how it stands; nil where it has none.
    public func warmUp(
        isolation: isolated (any Actor)? = #isolation,
        _ onProgress: (GpuReport) -> Void = { _ in }
    ) async throws -> GpuReport? {
        let model = model
        return try await warmedUp(isolation: isolation, try report().gpu, onProgress) { try model.waitForGpu(done: $0, cancel: $1) }
    }

    /// Frees the memory that is kept for the next call: for when the system asks for memory.
    public func trim() throws(AmpouleError) { try Ampoule.native(model.trim) }

    /// Closes the model: later calls throw ``AmpouleError/closed(_:)``, running ones go on, and its memory is freed after the last.
    public func close() { model.release() }
}

/// Sorts texts by labels.
public final class Classifier: AmpouleModel {
    private let model: AmpouleNative.Classifier
    /// The labels, in the model's order.
    public let labels: [String]

    private init(_ model: AmpouleNative.Classifier, _ labels: [String]) {
        self.model = model
        self.labels = labels
    }

    /// Opens a bundle of the task `single-label-classification` or `multi-label-classification`.
    ///
    /// - Throws: ``AmpouleError/fetchBundle(_:)``, ``AmpouleError/updateApp(_:)``, ``AmpouleError/useCpu(_:)``,
    ///   ``AmpouleError/fixInput(_:)``; `CancellationError` where the task was cancelled.
    public static func open(_ source: BundleSource, options: OpenOptions = OpenOptions()) async throws -> Classifier {
        try await opened { try openBlocking(source, options: options) }
    }

    /// The same where it is called.
    public static func openBlocking(
        _ source: BundleSource,
        options: OpenOptions = OpenOptions()
    ) throws(AmpouleError) -> Classifier {
        try Ampoule.native {
            let model = try AmpouleNative.Classifier.open(source: source.native(), options: options.native())
            return Classifier(model, try model.labels())
        }
    }

    /// Every label's probability, the likeliest first.
    ///
    /// - Throws: ``AmpouleError/closed(_:)``; `CancellationError` where the task was cancelled.
    public func classify(_ text: String) async throws -> [LabelScore] {
        let model = model
        return try await cancellable {
            try countable(text.utf8.count)
            return try model.classify(text: text, cancel: $0).map(LabelScore.init)
        }
    }

    /// The same for several texts, computed together.
    ///
    /// - Throws: ``AmpouleError/closed(_:)``; `CancellationError` where the task was cancelled.
    public func classifyAll(_ texts: [String]) async throws -> [[LabelScore]] {
        let model = model
        return try await cancellable {
            try countable(texts)
            return try model.classifyBatch(texts: texts, cancel: $0).map { $0.map(LabelScore.init) }
        }
    }

    /// Every label's probability where it is called, until it is cancelled or its time is over.
    ///
    /// - Parameters:
    ///   - text: of any length.
    ///   - cancel: ends the call from another thread.
    ///   - timeout: seconds after which the call ends.
    /// - Throws: ``AmpouleError/cancelled(_:)``, ``AmpouleError/closed(_:)``
    public func classifyBlocking(
        _ text: String,
        cancel: CancelToken? = nil,
        timeout: TimeInterval? = nil
    ) throws(AmpouleError) -> [LabelScore] {
        try countable(text.utf8.count)
        return try Ampoule.native { try model.classify(text: text, cancel: cancel?.token, timeoutMs: milliseconds(timeout)) }
            .map(LabelScore.init)
    }

    /// The same model as an object whose calls are counted by themselves, so that ``computed`` tells of one result, or of some.
    public func counted() -> Classifier { Classifier(model.counted(), labels) }

    /// Tokens that the calls of this object came to, by device. A call counts once it has ended, however it did.
    public var computed: Computed { Computed(model.computed()) }

    /// Where it computes, and what it holds.
    public func report() throws(AmpouleError) -> ModelReport { ModelReport(try Ampoule.native(model.report)) }

    /// Computes the golden cases of the model's bundle and compares the answers; nil where it has none.
    public func selfCheckBlocking() throws(AmpouleError) -> ModelCheck? { try Ampoule.native(model.selfCheck).map(ModelCheck.init) }

    /// Waits until the model's GPU is ready or has failed, and says how it stands; nil where it has none.
    public func warmUp(
        isolation: isolated (any Actor)? = #isolation,
        _ onProgress: (GpuReport) -> Void = { _ in }
    ) async throws -> GpuReport? {
        let model = model
        return try await warmedUp(isolation: isolation, try report().gpu, onProgress) { try model.waitForGpu(done: $0, cancel: $1) }
    }

    /// Frees the memory that is kept for the next call: for when the system asks for memory.
    public func trim() throws(AmpouleError) { try Ampoule.native(model.trim) }

    /// Closes the model: later calls throw ``AmpouleError/closed(_:)``, running ones go on, and its memory is freed after the last.
    public func close() { model.release() }
}

/// Turns texts into vectors for search and comparison.
public final class Embedder: AmpouleModel {
    private let model: AmpouleNative.Embedder
    /// Number of values of a vector.
    public let width: Int

    private init(_ model: AmpouleNative.Embedder, _ width: Int) {
        self.model = model
        self.width = width
    }

    /// Opens a bundle of any task.
    ///
    /// - Throws: ``AmpouleError/fetchBundle(_:)``, ``AmpouleError/updateApp(_:)``, ``AmpouleError/useCpu(_:)``,
    ///   ``AmpouleError/fixInput(_:)``; `CancellationError` where the task was cancelled.
    public static func open(_ source: BundleSource, options: OpenOptions = OpenOptions()) async throws -> Embedder {
        try await opened { try openBlocking(source, options: options) }
    }

    /// The same where it is called.
    public static func openBlocking(
        _ source: BundleSource,
        options: OpenOptions = OpenOptions()
    ) throws(AmpouleError) -> Embedder {
        try Ampoule.native {
            let model = try AmpouleNative.Embedder.open(source: source.native(), options: options.native())
            return Embedder(model, Int(try model.width()))
        }
    }

    /// The vector of a text, ``width`` values.
    ///
    /// - Throws: ``AmpouleError/closed(_:)``; `CancellationError` where the task was cancelled.
    public func embed(_ text: String) async throws -> [Float] {
        let model = model
        return try await cancellable {
            try countable(text.utf8.count)
            return floats(try model.embed(text: text, cancel: $0))
        }
    }

    /// The vectors of several texts, computed together.
    ///
    /// - Throws: ``AmpouleError/closed(_:)``; `CancellationError` where the task was cancelled.
    public func embedAll(_ texts: [String]) async throws -> [[Float]] {
        let (model, width) = (model, width)
        return try await cancellable { token in
            try countable(texts)
            let all = floats(try model.embedBatch(texts: texts, cancel: token))
            return texts.indices.map { Array(all[$0 * width..<($0 + 1) * width]) }
        }
    }

    /// The vector of a text where it is called, until it is cancelled or its time is over.
    ///
    /// - Parameters:
    ///   - text: of any length.
    ///   - cancel: ends the call from another thread.
    ///   - timeout: seconds after which the call ends.
    /// - Throws: ``AmpouleError/cancelled(_:)``, ``AmpouleError/closed(_:)``
    public func embedBlocking(
        _ text: String,
        cancel: CancelToken? = nil,
        timeout: TimeInterval? = nil
    ) throws(AmpouleError) -> [Float] {
        try countable(text.utf8.count)
        return floats(try Ampoule.native { try model.embed(text: text, cancel: cancel?.token, timeoutMs: milliseconds(timeout)) })
    }

    /// The same model as an object whose calls are counted by themselves, so that ``computed`` tells of one result, or of some.
    public func counted() -> Embedder { Embedder(model.counted(), width) }

    /// Tokens that the calls of this object came to, by device. A call counts once it has ended, however it did.
    public var computed: Computed { Computed(model.computed()) }

    /// Where it computes, and what it holds.
    public func report() throws(AmpouleError) -> ModelReport { ModelReport(try Ampoule.native(model.report)) }

    /// Computes the golden cases of the model's bundle and compares the answers; nil where it has none.
    public func selfCheckBlocking() throws(AmpouleError) -> ModelCheck? { try Ampoule.native(model.selfCheck).map(ModelCheck.init) }

    /// Waits until the model's GPU is ready or has failed, and says how it stands; nil where it has none.
    public func warmUp(
        isolation: isolated (any Actor)? = #isolation,
        _ onProgress: (GpuReport) -> Void = { _ in }
    ) async throws -> GpuReport? {
        let model = model
        return try await warmedUp(isolation: isolation, try report().gpu, onProgress) { try model.waitForGpu(done: $0, cancel: $1) }
    }

    /// Frees the memory that is kept for the next call: for when the system asks for memory.
    public func trim() throws(AmpouleError) { try Ampoule.native(model.trim) }

    /// Closes the model: later calls throw ``AmpouleError/closed(_:)``, running ones go on, and its memory is freed after the last.
    public func close() { model.release() }
}

private func floats(_ bytes: Data) -> [Float] {
    bytes.withUnsafeBytes { bytes in
        stride(from: 0, to: bytes.count, by: 4).map {
            Float(bitPattern: UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: $0, as: UInt32.self)))
        }
    }
}
