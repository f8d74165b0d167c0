internal import AmpouleNative

/// A piece of a text with a label. It holds no text itself; its range is of whole grapheme clusters (`Character`s).
public struct Entity: Hashable, Sendable {
    /// The label's name.
    public let label: String
    /// How probable it is, to the model, that the entity has this label and exactly these words, in `0...1`.
    public let score: Float
    /// Where it stands in the text that was given: `text[entity.range]`.
    public let range: Range<String.Index>
    /// The same place in UTF-16 code units, as `NSString` counts: `NSRange(entity.utf16)`.
    public let utf16: Range<Int>
    /// The same place in bytes, as `text.utf8` counts.
    public let utf8: Range<Int>
    /// The same place in scalar values, as `text.unicodeScalars` counts.
    public let unicodeScalars: Range<Int>
}

/// One label of a text.
public struct LabelScore: Hashable, Sendable {
    /// The label's name.
    public let label: String
    /// Its probability, in `0...1`: of all labels together 1 where one of them holds, each for itself where several may.
    public let score: Float
}

extension LabelScore {
    init(_ score: AmpouleNative.LabelScore) {
        self.init(label: score.label, score: score.score)
    }
}

/// A place in a text that moves forward, since counting from the beginning takes a while in a text that is not stored as UTF-8.
struct Place {
    private let text: String
    private var utf8 = 0
    private var index: String.Index

    init(_ text: String) {
        self.text = text
        index = text.startIndex
    }

    private mutating func advance(to utf8: UInt32) -> String.Index {
        index = text.utf8.index(index, offsetBy: Int(utf8) - self.utf8)
        self.utf8 = Int(utf8)
        return index
    }

    /// The entities of the text that come next.
    mutating func locate(_ entities: [AmpouleNative.Entity]) -> [Entity] {
        entities.map { entity in
            let start = advance(to: entity.utf8Start)
            let end = advance(to: entity.utf8End)
            return Entity(
                label: entity.label,
                score: entity.score,
                range: start..<end,
                utf16: Int(entity.utf16Start)..<Int(entity.utf16End),
                utf8: Int(entity.utf8Start)..<Int(entity.utf8End),
                unicodeScalars: Int(entity.scalarStart)..<Int(entity.scalarEnd)
            )
        }
    }
}

func located(_ entities: [AmpouleNative.Entity], in text: String) -> [Entity] {
    var place = Place(text)
    return place.locate(entities)
}
