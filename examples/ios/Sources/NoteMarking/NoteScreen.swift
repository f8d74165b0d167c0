import Ampoule
import Dispatch
import Foundation

/// What the one screen shows.
public struct Shown: Hashable, Sendable {
    /// A piece of the note, in order; all of them together are the note.
    public struct Piece: Hashable, Sendable {
        public let text: String
        /// Of an entity.
        public let label: String?

        /// As a screen reader says it: what is shown by colour alone is said, too.
        public var spoken: String { label.map { "\(text), \($0)" } ?? text }
    }

    public var pieces: [Piece] = []
    /// What the last key cost, such as `3 entities, 12 ms, 14.6 MB`.
    public var figures = ""
    /// What the user can do about what went wrong.
    public var problem: String?
}

/// The logic of the screen: a note that is marked as one types.
@MainActor
public final class NoteScreen {
    public private(set) var shown = Shown() {
        didSet { onChange(shown) }
    }

    private let onChange: (Shown) -> Void
    private var extractor: Extractor?
    private var running: Task<Void, Never>?

    public init(onChange: @escaping (Shown) -> Void = { _ in }) {
        self.onChange = onChange
    }

    /// Opens the model, once, before there is anything to mark.
    public func open(_ source: BundleSource, options: OpenOptions = OpenOptions()) async {
        do {
            extractor = try await Extractor.open(source, options: options)
        } catch {
            shown.problem = advice(error)
        }
    }

    /// Marks a note in place of the one before, whose computation ends now: at every key.
    @discardableResult
    public func write(_ note: String) -> Task<Void, Never>? {
        running?.cancel()
        running = extractor.map { extractor in Task { await mark(note, extractor) } }
        return running
    }

    private func mark(_ note: String, _ extractor: Extractor) async {
        let start = DispatchTime.now().uptimeNanoseconds
        do {
            let found = try await extractor.extract(note)
            let report = try extractor.report()
            let took = Double(DispatchTime.now().uptimeNanoseconds - start) / 1e6
            // It was found for a note that is no longer there.
            try Task.checkCancellation()
            let megabytes = Double(report.weightBytes + report.workspaceBytes) / 1e6
            let entities = found.count == 1 ? "1 entity" : "\(found.count) entities"
            shown = Shown(pieces: pieces(of: note, found), figures: entities + String(format: ", %.0f ms, %.1f MB", took, megabytes))
        } catch is CancellationError {
            // A later key has its own task.
        } catch {
            shown.problem = advice(error)
        }
    }

    /// Gives back memory when the system asks for some.
    public func trim() {
        try? extractor?.trim()
    }
}

/// The note in pieces, those of entities with their label.
func pieces(of note: String, _ entities: [Entity]) -> [Shown.Piece] {
    var pieces: [Shown.Piece] = []
    var end = note.startIndex
    for entity in entities {
        if end < entity.range.lowerBound { pieces.append(Shown.Piece(text: String(note[end..<entity.range.lowerBound]), label: nil)) }
        pieces.append(Shown.Piece(text: String(note[entity.range]), label: entity.label))
        end = entity.range.upperBound
    }
    if end < note.endIndex { pieces.append(Shown.Piece(text: String(note[end...]), label: nil)) }
    return pieces
}

/// What a user can do.
func advice(_ error: any Error) -> String {
    switch error as? AmpouleError {
    case .fetchBundle: return "The model is missing or damaged. Please download it again."
    case .updateApp: return "This model needs a newer version of the app. Please update it."
    case .useCpu: return "This device cannot run the model as asked."
    case .fixInput: return "This note cannot be read as it is."
    case .closed: return "The model is closed. Please start the app again."
    case .cancelled: return "It took too long. Please try again."
    case .internal, nil: return "Something went wrong in the app. Please report it."
    }
}
