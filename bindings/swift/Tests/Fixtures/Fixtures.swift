import Ampoule
import Foundation

/// The checkout.
public let root = URL(fileURLWithPath: ProcessInfo.processInfo.environment["AMPOULE_ROOT"] ?? FileManager.default.currentDirectoryPath)

/// `bindings/scenario.json`, which the other languages run too.
public struct Scenario: Decodable, Sendable {
    public struct Bundles: Decodable, Sendable {
        public let entities: String
        public let labels: String
    }

    public struct Labels: Decodable, Sendable {
        public let entities: [String]
        public let labels: [String]
    }

    public struct Found: Decodable, Sendable {
        public let label: String
        public let score: Double
        public let utf8: [Int]
        public let utf16: [Int]
        public let scalars: [Int]
    }

    public struct Score: Decodable, Sendable {
        public let label: String
        public let score: Double
    }

    public struct Case: Decodable, Sendable {
        public let name: String
        public let text: String
        public let entities: [Found]
        public let labels: [Score]?
        public let vector: [Double]?
    }

    public struct Surrogates: Decodable, Sendable {
        public let name: String
        public let units: [UInt16]
        public let entities: [Found]
    }

    public struct Failure: Decodable, Sendable {
        public let name: String
        public let model: String
        public let path: String
        public let error: String
        public let bytes: Int?
        public let replace: [String]?
        public let kernel: String?
        public let device: String?
        public let min_score_by_label: [String: Float]?
    }

    public struct Long: Decodable, Sendable {
        public let sentence: String
        public let bytes: Int
    }

    public let bundles: Bundles
    public let labels: Labels
    public let width: Int
    public let tolerance: Double
    public let cases: [Case]
    public let surrogates: [Surrogates]
    public let errors: [Failure]
    public let long: Long
}

/// What Rust's test of the scenario leaves: sentences with the bits that this machine's kernel gives.
public struct Sentences: Decodable, Sendable {
    public struct Case: Decodable, Sendable {
        public let text: String
        public let entities: [Scenario.Found]
    }

    public let bundle: String
    public let kernel: String?
    public let cases: [Case]
}

public func read<T: Decodable>(_ path: String, as: T.Type) throws -> T {
    try JSONDecoder().decode(T.self, from: Data(contentsOf: root.appendingPathComponent(path)))
}

public let scenario: Scenario = {
    do {
        return try read("bindings/scenario.json", as: Scenario.self)
    } catch {
        fatalError("bindings/scenario.json in \(root.path), which AMPOULE_ROOT names: \(error)")
    }
}()

public let bundle = root.appendingPathComponent(scenario.bundles.entities)
public let labelsBundle = root.appendingPathComponent(scenario.bundles.labels)
public let sentence = "Started on lisinopril for hypertension; developed angioedema."
/// Of three megabytes, without any entity.
public let nothing = String(repeating: "No known allergies. ", count: 150_000)
public let longText = String(repeating: scenario.long.sentence, count: scenario.long.bytes / scenario.long.sentence.utf8.count)
public let one = OpenOptions(threads: 1)

/// Seconds since some moment.
public func now() -> TimeInterval { ProcessInfo.processInfo.systemUptime }

public struct NotWithin: Error, CustomStringConvertible {
    public let description: String
}

/// Waits for what another thread or task does.
public func until(_ what: String, within seconds: TimeInterval = 20, _ condition: () throws -> Bool) async throws {
    let end = now() + seconds
    while try !condition() {
        guard now() < end else { throw NotWithin(description: "\(what): not within \(seconds) s") }
        try await Task.sleep(nanoseconds: 1_000_000)
    }
}

extension Array where Element: Comparable {
    public var median: Element { sorted()[count / 2] }
}
