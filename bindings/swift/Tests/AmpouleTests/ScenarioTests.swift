import Ampoule
import Fixtures
import Foundation
import XCTest

/// `bindings/scenario.json`, which Rust, Python and Kotlin run too.
final class ScenarioTests: XCTestCase {
    private func assertEntities(_ expected: [Scenario.Found], _ found: [Entity], within tolerance: Double, _ name: String) {
        XCTAssertEqual(expected.count, found.count, name)
        for (entity, expected) in zip(found, expected) {
            XCTAssertEqual(expected.label, entity.label, name)
            XCTAssertEqual(expected.utf8, [entity.utf8.lowerBound, entity.utf8.upperBound], name)
            XCTAssertEqual(expected.utf16, [entity.utf16.lowerBound, entity.utf16.upperBound], name)
            XCTAssertEqual(expected.scalars, [entity.unicodeScalars.lowerBound, entity.unicodeScalars.upperBound], name)
            XCTAssertLessThanOrEqual(abs(expected.score - Double(entity.score)), tolerance, name)
        }
    }

    /// Each unit cuts out the same piece, and so do the indices.
    private func assertPieces(_ text: String, _ found: [Entity], _ name: String) {
        for entity in found {
            let piece = String(text[entity.range])
            XCTAssertEqual(piece, (text as NSString).substring(with: NSRange(entity.utf16)), name)
            XCTAssertEqual(NSRange(entity.utf16), NSRange(entity.range, in: text), name)
            XCTAssertEqual(Array(piece.utf8), Array(text.utf8.dropFirst(entity.utf8.lowerBound).prefix(entity.utf8.count)), name)
            let scalars = text.unicodeScalars.dropFirst(entity.unicodeScalars.lowerBound).prefix(entity.unicodeScalars.count)
            XCTAssertEqual(Array(piece.unicodeScalars), Array(scalars), name)
            XCTAssertTrue(text.indices.contains(entity.range.lowerBound), "\(name): within a character")
        }
    }

    func testTextsHaveWhatTheFileSays() async throws {
        let extractor = try await Extractor.open(.file(bundle))
        let classifier = try await Classifier.open(.file(labelsBundle))
        let embedder = try await Embedder.open(.file(bundle))
        XCTAssertEqual(scenario.labels.entities, extractor.labels)
        XCTAssertEqual(scenario.labels.labels, classifier.labels)
        XCTAssertEqual(scenario.width, embedder.width)
        var compared = 0
        for expected in scenario.cases {
            let (name, text) = (expected.name, expected.text)
            let found = try await extractor.extract(text)
            assertEntities(expected.entities, found, within: scenario.tolerance, name)
            assertPieces(text, found, name)
            compared += found.count
            if let labels = expected.labels, let vector = expected.vector {
                let scores = try await classifier.classify(text)
                XCTAssertEqual(labels.map(\.label), scores.map(\.label), name)
                for (score, expected) in zip(scores, labels) {
                    XCTAssertEqual(Double(score.score), expected.score, accuracy: scenario.tolerance, name)
                }
                let values = try await embedder.embed(text)
                XCTAssertEqual(embedder.width, values.count)
                for (value, expected) in zip(values, vector) {
                    XCTAssertEqual(Double(value), expected, accuracy: scenario.tolerance, name)
                }
            }
        }
        XCTAssertGreaterThan(compared, 80)
    }

    /// Swift reads them as U+FFFD, which is one unit too.
    func testSurrogatesWithoutPartnersCountAsOneUnit() async throws {
        let extractor = try await Extractor.open(.file(bundle))
        XCTAssertEqual(scenario.surrogates.count, 3)
        for expected in scenario.surrogates {
            let bridged = expected.units.withUnsafeBufferPointer { NSString(characters: $0.baseAddress!, length: $0.count) }
            for text in [String(decoding: expected.units, as: UTF16.self), String(bridged)] {
                let found = try await extractor.extract(text)
                assertEntities(expected.entities, found, within: scenario.tolerance, expected.name)
                assertPieces(text, found, expected.name)
                for (entity, expected) in zip(found, expected.entities) {
                    // In the string that the app has.
                    XCTAssertEqual(bridged.substring(with: NSRange(entity.utf16)), String(text[entity.range]))
                    XCTAssertEqual(NSRange(entity.utf16), NSRange(expected.utf16[0]..<expected.utf16[1]))
                }
                XCTAssertEqual(found, try extractor.extractBlocking(text))
            }
        }
    }

    func testErrorsAreThoseOfTheFile() throws {
        let folder = try temporaryFolder()
        XCTAssertGreaterThan(scenario.errors.count, 6)
        for expected in scenario.errors {
            let source = BundleSource.file(try prepared(expected, in: folder))
            let options = OpenOptions(
                device: expected.device == "gpu" ? .gpu : .cpu,
                kernel: expected.kernel,
                minScoreByLabel: expected.min_score_by_label ?? [:]
            )
            XCTAssertThrowsError(try open(expected.model, source, options), expected.name) { error in
                XCTAssertEqual(expected.error, (error as? AmpouleError)?.variant, expected.name)
                XCTAssertGreaterThan((error as? AmpouleError)?.message.count ?? 0, 10, expected.name)
            }
        }
    }

    private func open(_ model: String, _ source: BundleSource, _ options: OpenOptions) throws -> any AmpouleModel {
        switch model {
        case "extractor": return try Extractor.openBlocking(source, options: options)
        case "classifier": return try Classifier.openBlocking(source, options: options)
        default: return try Embedder.openBlocking(source, options: options)
        }
    }

    private func prepared(_ failure: Scenario.Failure, in folder: URL) throws -> URL {
        let file = root.appendingPathComponent(failure.path)
        guard failure.bytes != nil || failure.replace != nil else { return file }
        var bytes = try Data(contentsOf: file)
        if let count = failure.bytes { bytes = bytes.prefix(count) }
        if let replace = failure.replace {
            let range = try XCTUnwrap(bytes.range(of: Data(replace[0].utf8)))
            bytes.replaceSubrange(range, with: Data(replace[1].utf8))
        }
        let changed = folder.appendingPathComponent("changed.safetensors")
        try bytes.write(to: changed)
        return changed
    }

    func testAThousandSentencesAreRustsToTheLastBit() async throws {
        let path = "target/tmp/sentences.json"
        try XCTSkipUnless(
            FileManager.default.fileExists(atPath: root.appendingPathComponent(path).path),
            "\(path) is not there; cargo test --release --workspace --test scenario leaves it"
        )
        let sentences = try read(path, as: Sentences.self)
        let extractor = try await Extractor.open(.file(root.appendingPathComponent(sentences.bundle)))
        XCTAssertEqual(sentences.kernel, try extractor.report().kernel)
        XCTAssertEqual(1000, sentences.cases.count)
        for expected in sentences.cases {
            assertEntities(expected.entities, try await extractor.extract(expected.text), within: 0, expected.text)
        }
    }
}
