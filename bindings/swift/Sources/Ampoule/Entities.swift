import Foundation
internal import AmpouleNative

/// The entities of a long text, which arrive window by window while it is computed:
///
///     for try await entity in extractor.entities(in: note) { ... }
///
/// Each loop computes anew, begins when it asks for the first entity, and stops computing when it is left, by `break`, an error or the
/// task's cancellation; that last throws `CancellationError`, so that part of a text is never taken for all of it. The model never waits
/// for a slow loop, which might itself wait for the model: what has been found waits instead, some bytes an entity.
///
/// (An `AsyncThrowingStream` ends without an error where its task is cancelled, and its work would go on while somebody holds it.)
public struct Entities: AsyncSequence, Sendable {
    public typealias Element = Entity

    /// A closure, so that no description of this holds the text.
    private let read: @Sendable () -> Reading

    init(_ read: @escaping @Sendable () -> Reading) {
        self.read = read
    }

    /// A loop of its own.
    public func makeAsyncIterator() -> Iterator { Iterator(reading: read()) }

    /// One loop over the entities.
    public struct Iterator: AsyncIteratorProtocol, Sendable {
        fileprivate let reading: Reading
        private var arrived: ArraySlice<Entity> = []

        fileprivate init(reading: Reading) {
            self.reading = reading
        }

        /// The next entity, as soon as nothing that follows in the text can change it; none at the end.
        ///
        /// - Throws: ``AmpouleError/closed(_:)``; `CancellationError` where the task was cancelled.
        public mutating func next() async throws -> Entity? {
            if arrived.isEmpty {
                arrived = try await reading.next()[...]
            }
            return arrived.popFirst()
        }
    }
}

/// One computation of a text, which stops when nothing holds it any more: Rust ends what nobody can read.
final class Reading: Sendable {
    /// Serial; it alone touches the work, and its thread is its own, so that loops which wait leave calls their turn.
    private let queue = blockingQueue()
    private let token = AmpouleNative.CancelToken()
    private let work: Work

    /// What has been read. The queue's.
    private final class Work: @unchecked Sendable {
        let model: AmpouleNative.Extractor
        let text: String
        var place: Place
        var stream: AmpouleNative.EntityStream?
        var hasEnded = false

        init(_ model: AmpouleNative.Extractor, _ text: String) {
            self.model = model
            self.text = text
            place = Place(text)
        }

        func next(_ token: AmpouleNative.CancelToken) throws -> [Entity] {
            if hasEnded { return [] }
            // An error, too, ends it.
            hasEnded = true
            try countable(text.utf8.count)
            let stream = try stream ?? model.stream(text: text, cancel: token)
            self.stream = stream
            guard let entities = try stream.next() else { return [] }
            hasEnded = false
            return place.locate(entities)
        }
    }

    init(_ model: AmpouleNative.Extractor, _ text: String) {
        work = Work(model, text)
    }

    /// The next entities, none at the end.
    func next() async throws -> [Entity] {
        let (token, work) = (token, work)
        return try await running(on: queue, stop: { token.cancel() }) { try work.next(token) }
    }
}

extension Reading: CustomReflectable {
    /// Without the text.
    var customMirror: Mirror { Mirror(self, children: []) }
}
