@testable import Ampoule
import Fixtures
import Foundation
import XCTest

/// Bundles that are not what they should be, models that are closed or dropped, and what is never said of a text.
final class MisuseTests: XCTestCase {
    private let canary = "zyxquell"

    private func open(_ source: BundleSource = .file(bundle), options: OpenOptions = one) throws -> Extractor {
        try Extractor.openBlocking(source, options: options)
    }

    func testReportsAndTrim() throws {
        let extractor = try open()
        XCTAssertEqual(3, try extractor.extractBlocking(sentence).count)
        let report = try extractor.report()
        XCTAssertEqual("int8", report.precision)
        XCTAssertEqual(1, report.threads)
        XCTAssertTrue(try AmpouleLibrary.selfCheck().contains(try XCTUnwrap(report.kernel)))
        XCTAssertGreaterThan(report.workspaceBytes, 0)
        XCTAssertGreaterThan(report.weightBytes, 1_000_000)
        let check = try XCTUnwrap(try extractor.selfCheckBlocking())
        XCTAssertGreaterThan(check.cases, 0)
        XCTAssertTrue((0...check.allowed).contains(check.largestDifference))
        try extractor.trim()
        XCTAssertEqual(0, try extractor.report().workspaceBytes)
        XCTAssertEqual(3, try extractor.extractBlocking(sentence).count)
        XCTAssertNotNil(AmpouleLibrary.version.range(of: #"^\d+\.\d+\.\d+$"#, options: .regularExpression))
    }

    func testAClosedModelIsAnErrorWhenever() async throws {
        let before = AmpouleLibrary.liveObjects
        let model = try open()
        let task = Task { try await model.extract(longText) }
        try await until("it computes") { try model.report().runningCalls == 1 }
        model.close()
        model.close()
        await assertThrows("Closed") { try await model.extract(sentence) }
        await assertThrows("Closed") { try await model.extractAll([sentence]) }
        await assertThrows("Closed") { try await collected(model.entities(in: sentence)) }
        assertThrows("Closed") { try model.extractBlocking(sentence) }
        assertThrows("Closed") { try model.report() }
        assertThrows("Closed") { try model.trim() }
        // The call that runs goes on, and keeps the model.
        XCTAssertEqual(before + 1, AmpouleLibrary.liveObjects)
        task.cancel()
        await assertCancelled { try await task.value }
        try await until("it is freed") { AmpouleLibrary.liveObjects == before }
        let classifier = try Classifier.openBlocking(.file(labelsBundle))
        classifier.close()
        await assertThrows("Closed") { try await classifier.classify(sentence) }
        let embedder = try Embedder.openBlocking(.file(bundle))
        embedder.close()
        await assertThrows("Closed") { try await embedder.embed(sentence) }
        try await until("they are freed") { AmpouleLibrary.liveObjects == before }
    }

    func testAModelThatIsDroppedWhileACallRuns() async throws {
        let before = AmpouleLibrary.liveObjects
        let text = String(repeating: sentence + "\n", count: 300)
        func start() throws -> (Task<[Entity], any Error>, Entities) {
            let model = try open()
            return (Task { try await model.extract(text) }, model.entities(in: text))
        }
        func finish() async throws {
            let (task, entities) = try start()
            let (found, arrived) = (try await task.value, try await collected(entities))
            XCTAssertEqual(900, found.count)
            XCTAssertEqual(found, arrived)
            XCTAssertGreaterThan(AmpouleLibrary.liveObjects, before)
        }
        try await finish()
        try await until("it is freed") { AmpouleLibrary.liveObjects == before }
    }

    func testWhatIsOpenedForACancelledTaskIsFreed() async throws {
        let before = AmpouleLibrary.liveObjects
        var cancelled = 0
        for i in 0..<40 {
            let task = Task { _ = try await Extractor.open(.file(bundle), options: one) }
            try await Task.sleep(nanoseconds: UInt64(i) * 250_000)
            task.cancel()
            do { try await task.value } catch is CancellationError { cancelled += 1 }
            try await until("it is freed", within: 2) { AmpouleLibrary.liveObjects == before }
        }
        XCTAssertGreaterThan(cancelled, 0)
    }

    func testOptionsThatCannotBe() throws {
        for options in [
            OpenOptions(threads: -1), OpenOptions(threads: 100_000), OpenOptions(threads: .max), OpenOptions(temperature: 0),
            OpenOptions(maxWindowTokens: 2), OpenOptions(maxBatchTokens: -1),
        ] {
            assertThrows("FixInput") { try open(options: options) }
        }
        assertThrows("FixInput") { try open(.part(of: bundle, offset: 0, length: 1 << 40)) }
        assertThrows("FixInput") { try open(.file(XCTUnwrap(URL(string: "https://localhost/model.safetensors")))) }
        let picky = try open(options: OpenOptions(threads: 1, minScoreByLabel: ["Disease": 1]))
        XCTAssertEqual(["Chemical"], try picky.extractBlocking(sentence).map(\.label))
    }

    func testWhatCannotBeCountedIsRefused() throws {
        let most = Int(Int32.max)
        XCTAssertNoThrow(try countable(most))
        assertThrows("FixInput") { try countable(most + 1) }
        XCTAssertNoThrow(try countable(["", sentence]))
        // It takes the memory of one: copies share it.
        let large = String(repeating: "x", count: 1 << 20)
        assertThrows("FixInput") { try countable(Array(repeating: large, count: 1 << 11)) }
    }

    func testResources() throws {
        assertThrows("FetchBundle") { try open(.resource("no-such.safetensors")) }
        // One that is there, and is no bundle.
        XCTAssertThrowsError(try open(.resource("resource.txt", in: .module))) { error in
            XCTAssertEqual("FetchBundle", (error as? AmpouleError)?.variant)
            XCTAssertFalse((error as? AmpouleError)?.message.contains("among the resources") ?? true)
        }
        // One that is: of a folder, which is a bundle of resources too.
        let folder = try temporaryFolder()
        try FileManager.default.copyItem(at: bundle, to: folder.appendingPathComponent("model.int8.safetensors"))
        let resources = try XCTUnwrap(Bundle(url: folder))
        XCTAssertEqual(3, try open(.resource("model.int8.safetensors", in: resources)).extractBlocking(sentence).count)
    }

    func testABundleAtEveryFourthByteOfAZip() throws {
        let (folder, bytes) = (try temporaryFolder(), try Data(contentsOf: bundle))
        var offsets: Set<Int> = []
        for extra in 0..<16 {
            let name = "model" + String(repeating: "x", count: extra)
            let zip = storedZip(name, bytes)
            let file = folder.appendingPathComponent("\(extra).zip")
            try zip.write(to: file)
            // The entry's header and its name stand before its data.
            let offset = 30 + name.utf8.count
            for load in [Load.map, .copy] {
                let source = BundleSource.part(of: file, offset: UInt64(offset), length: UInt64(bytes.count))
                let model = try open(source, options: OpenOptions(threads: 1, load: load, verify: true))
                XCTAssertEqual(3, try model.extractBlocking(sentence).count)
            }
            offsets.insert(offset % 16)
            try FileManager.default.removeItem(at: file)
        }
        XCTAssertEqual(Set(0..<16), offsets)
    }

    /// A zip of one entry that is stored as it is, and no more of a zip than a reader of its first entry looks at.
    private func storedZip(_ name: String, _ bytes: Data) -> Data {
        func little<T: FixedWidthInteger>(_ value: T) -> Data { withUnsafeBytes(of: value.littleEndian) { Data($0) } }
        var zip = Data("PK\u{3}\u{4}".utf8)
        // Version, flags, method (stored), time, date, checksum (left out), both sizes, length of the name, of more.
        for field: UInt16 in [20, 0, 0, 0, 0] { zip += little(field) }
        for field: UInt32 in [0, UInt32(bytes.count), UInt32(bytes.count)] { zip += little(field) }
        for field: UInt16 in [UInt16(name.utf8.count), 0] { zip += little(field) }
        return zip + Data(name.utf8) + bytes + Data("PK\u{1}\u{2}".utf8)
    }

    func testABundleThatIsReplacedWhileOpen() throws {
        let folder = try temporaryFolder()
        let path = folder.appendingPathComponent("model.safetensors")
        try FileManager.default.copyItem(at: bundle, to: path)
        let model = try open(.file(path), options: OpenOptions(threads: 1, load: .map))
        // Written beside it, then renamed.
        try Data("no bundle".utf8).write(to: path, options: .atomic)
        XCTAssertEqual(3, try model.extractBlocking(sentence).count)
        assertThrows("FetchBundle") { try open(.file(path)) }
        let other = folder.appendingPathComponent("other")
        try FileManager.default.copyItem(at: bundle, to: other)
        XCTAssertEqual(0, rename(other.path, path.path))
        XCTAssertEqual(3, try model.extractBlocking(sentence).count)
        XCTAssertEqual(3, try open(.file(path)).extractBlocking(sentence).count)
    }

    func testAFileNameOfEveryKindOfCharacter() throws {
        let file = try temporaryFolder().appendingPathComponent("modèle é 100% 😀#?.safetensors")
        try FileManager.default.copyItem(at: bundle, to: file)
        XCTAssertEqual(3, try open(.file(file)).extractBlocking(sentence).count)
    }

    /// All that Swift can be made to say of a value.
    private func said(_ value: Any) -> String {
        var all = "\(value) \(String(reflecting: value))"
        dump(value, to: &all)
        if let error = value as? any Error {
            let bridged = error as NSError
            all += " \(error.localizedDescription) \(bridged) \(bridged.debugDescription) \(bridged.userInfo)"
            all += " \((error as? any LocalizedError)?.errorDescription ?? "") \((error as? any LocalizedError)?.failureReason ?? "")"
        }
        return all
    }

    func testNothingSaysTheText() async throws {
        XCTAssertTrue(said([["text": canary]]).contains(canary))
        let text = String(repeating: "\(canary) \(sentence)\n", count: 20_000)
        let (model, closed, token) = (try open(), try open(), CancelToken())
        token.cancel()
        closed.close()
        let classifier = try Classifier.openBlocking(.file(labelsBundle))
        let embedder = try Embedder.openBlocking(.file(bundle))
        func soon(_ call: @escaping @Sendable () async throws -> Void) async throws {
            let task = Task { try await call() }
            try await Task.sleep(nanoseconds: 5_000_000)
            task.cancel()
            try await task.value
        }
        let calls: [() async throws -> Void] = [
            { _ = try model.extractBlocking(text, timeout: 0.005) },
            { _ = try model.extractBlocking(self.canary, cancel: token) },
            { _ = try classifier.classifyBlocking(text, cancel: token) },
            { _ = try embedder.embedBlocking(text, cancel: token) },
            { try await soon { _ = try await model.extract(text) } },
            { try await soon { _ = try await collected(model.entities(in: text)) } },
            { try await soon { _ = try await model.extractAll([text, text]) } },
            { _ = try await closed.extract(text) },
            { _ = try await collected(closed.entities(in: text)) },
        ]
        var errors = 0
        for call in calls {
            do {
                try await call()
            } catch {
                errors += 1
                XCTAssertFalse(said(error).contains(canary))
                XCTAssertTrue(error is AmpouleError || error is CancellationError, "\(type(of: error))")
            }
        }
        XCTAssertEqual(calls.count, errors)
        let short = "\(canary) \(sentence)"
        let (entities, found) = (model.entities(in: short), try await model.extract(short))
        XCTAssertFalse(found.isEmpty)
        var iterator = entities.makeAsyncIterator()
        let first = try await iterator.next()
        XCTAssertNotNil(first)
        let values: [Any] = [model, entities, iterator, found, try model.report(), one, token, BundleSource.file(bundle)]
        for value in values { XCTAssertFalse(said(value).contains(canary), "\(type(of: value))") }
    }

#if os(Linux) || os(macOS)
    func testTheGuidesLinesRunAndNothingElseIsPrinted() throws {
        let process = Process()
        var folder = Bundle(for: Self.self).bundleURL
        if folder.pathExtension == "xctest" { folder.deleteLastPathComponent() }
        process.executableURL = folder.appendingPathComponent("Guide")
        process.currentDirectoryURL = root.appendingPathComponent("models")
        let (out, err) = (Pipe(), Pipe())
        (process.standardOutput, process.standardError) = (out, err)
        try process.run()
        let printed = String(decoding: out.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        XCTAssertEqual("", String(decoding: err.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self))
        process.waitUntilExit()
        XCTAssertEqual(0, process.terminationStatus)
        let words = printed.split(separator: "\n").map { $0.split(separator: " ").prefix(2).joined(separator: " ") }
        XCTAssertEqual(["Chemical lisinopril", "Disease hypertension", "Disease angioedema"], words)
    }
#endif
}
