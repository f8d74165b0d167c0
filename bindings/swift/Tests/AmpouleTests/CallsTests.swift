import Ampoule
import Fixtures
import Foundation
import XCTest

/// Calls from tasks and threads: cancelled, streamed, and many at once.
final class CallsTests: XCTestCase {
    private func open() throws -> Extractor { try Extractor.openBlocking(.file(bundle), options: one) }

    func testPiecesOfTheTextAreTheEntities() async throws {
        let extractor = try open()
        let found = try await extractor.extract(sentence)
        XCTAssertEqual(["lisinopril", "hypertension", "angioedema"], found.map { String(sentence[$0.range]) })
        XCTAssertEqual(["Chemical", "Disease", "Disease"], found.map(\.label))
        XCTAssertEqual(found, try extractor.extractBlocking(sentence))
        let none = try await extractor.extract("")
        XCTAssertEqual([], none)
        let arrived = try await collected(extractor.entities(in: ""))
        XCTAssertEqual([], arrived)
    }

    func testManyTextsAndStreamsGiveWhatSingleCallsGive() async throws {
        let extractor = try open()
        let texts = ["", sentence, "é lisinopril", "No known allergies."]
        let all = try await extractor.extractAll(texts)
        XCTAssertEqual(texts.count, all.count)
        for (text, found) in zip(texts, all) {
            let single = try await extractor.extract(text)
            XCTAssertEqual(single.map { text[$0.range] }, found.map { text[$0.range] })
        }
        let text = String(repeating: sentence + " 😀\r\n", count: 400)
        let (found, arrived) = (try await extractor.extract(text), try await collected(extractor.entities(in: text)))
        XCTAssertEqual(1200, found.count)
        XCTAssertEqual(found, arrived)
        let embedder = try await Embedder.open(.file(bundle), options: one)
        let (vectors, noVectors) = (try await embedder.embedAll(texts), try await embedder.embedAll([]))
        XCTAssertEqual(texts.map { _ in embedder.width }, vectors.map(\.count))
        XCTAssertEqual([], noVectors)
        let vector = try await embedder.embed(sentence)
        XCTAssertEqual(try embedder.embedBlocking(sentence), vector)
        let classifier = try await Classifier.open(.file(labelsBundle), options: one)
        let (scores, single) = (try await classifier.classifyAll(texts), try await classifier.classify(sentence))
        XCTAssertEqual(texts.count, scores.count)
        XCTAssertEqual(try classifier.classifyBlocking(sentence), single)
    }

    func testCancellingATaskEndsTheCallAndRustStops() async throws {
        let extractor = try open()
        let task = Task { try await extractor.extract(longText) }
        try await until("it computes") { try extractor.report().computedTokens > 2_000 }
        XCTAssertEqual(1, try extractor.report().runningCalls)
        task.cancel()
        try await until("it stops", within: 2) { try extractor.report().runningCalls == 0 }
        await assertCancelled { try await task.value }
        let ended = try extractor.report()
        try await Task.sleep(nanoseconds: 50_000_000)
        XCTAssertEqual(ended.computedTokens, try extractor.report().computedTokens)
        // Before the start, the library is not asked.
        let early = Task {
            withUnsafeCurrentTask { $0?.cancel() }
            return try await extractor.extract(longText)
        }
        await assertCancelled { try await early.value }
        XCTAssertEqual(ended.computedTokens, try extractor.report().computedTokens)
        // After the end, nothing happens.
        let late = Task { try await extractor.extract(sentence) }
        let found = try await late.value
        late.cancel()
        let again = try await extractor.extract(sentence)
        XCTAssertEqual(found, again)
    }

    func testTimeRunsOutInBlockingCalls() throws {
        let extractor = try open()
        for timeout in [TimeInterval(0), 0.03, -5, -TimeInterval.infinity] {
            assertThrows("Cancelled") { try extractor.extractBlocking(longText, timeout: timeout) }
        }
        for timeout in [TimeInterval.infinity, .greatestFiniteMagnitude, .nan, 60, 1e10] {
            XCTAssertEqual(3, try extractor.extractBlocking(sentence, timeout: timeout).count)
        }
        let token = CancelToken()
        XCTAssertFalse(token.isCancelled)
        DispatchQueue.global().asyncAfter(deadline: .now() + 0.03) { token.cancel() }
        assertThrows("Cancelled") { try extractor.extractBlocking(longText, cancel: token) }
        XCTAssertTrue(token.isCancelled)
        assertThrows("Cancelled") { try extractor.extractBlocking(sentence, cancel: token) }
        XCTAssertEqual(0, try extractor.report().runningCalls)
    }

    /// It computes no more, long before the end of the text.
    private func assertStops(_ extractor: Extractor, _ text: String, since before: Int) async throws {
        try await until("it stops", within: 2) { try extractor.report().runningCalls == 0 }
        let tokens = try extractor.report().computedTokens - before
        XCTAssertLessThan(tokens, text.utf8.filter { $0 == UInt8(ascii: " ") }.count / 10)
    }

    func testAStreamGivesEntitiesAtOnceAndStopsWithItsLoop() async throws {
        let extractor = try open()
        let entities = extractor.entities(in: longText)
        for count in [1, 7] {
            let before = try extractor.report().computedTokens
            var found: [Entity] = []
            for try await entity in entities {
                found.append(entity)
                if found.count == count { break }
            }
            XCTAssertEqual("lisinopril", longText[try XCTUnwrap(found.first).range])
            // Though the sequence is still held here, for another loop.
            try await assertStops(extractor, longText, since: before)
        }
        // While it waits, too: there is nothing to find here.
        let before = try extractor.report().computedTokens
        let task = Task { try await collected(extractor.entities(in: nothing)) }
        try await until("it computes") { try extractor.report().runningCalls == 1 }
        try await Task.sleep(nanoseconds: 20_000_000)
        task.cancel()
        // Never as if that were all.
        await assertCancelled { try await task.value }
        try await assertStops(extractor, nothing, since: before)
        // Each loop has its own, and one that has ended stays so.
        let short = extractor.entities(in: sentence)
        let (first, second) = (try await collected(short), try await collected(short))
        XCTAssertEqual(3, first.count)
        XCTAssertEqual(first, second)
        var iterator = extractor.entities(in: "").makeAsyncIterator()
        for _ in 0..<3 {
            let none = try await iterator.next()
            XCTAssertNil(none)
        }
    }

    func testACallThatWaitsForItsTurnIsCancelledAtOnce() async throws {
        let extractor = try open()
        let tasks = (0..<4).map { _ in Task { try await extractor.extract(longText) } }
        try await until("they compute") { try extractor.report().runningCalls == 4 }
        let extracts = Task { _ = try await extractor.extract("x") }
        let opens = Task { _ = try await Extractor.open(.file(bundle), options: one) }
        for waiting in [extracts, opens] {
            try await Task.sleep(nanoseconds: 50_000_000)
            waiting.cancel()
            await assertCancelled { try await waiting.value }
        }
        // They end before those that they waited for.
        XCTAssertEqual(4, try extractor.report().runningCalls)
        tasks.forEach { $0.cancel() }
        for task in tasks { await assertCancelled { try await task.value } }
        let found = try await extractor.extract(sentence)
        XCTAssertEqual(3, found.count)
    }

    func testStreamsThatWaitLeaveCallsTheirTurn() async throws {
        let extractor = try open()
        let tasks = (0..<8).map { _ in Task { try await collected(extractor.entities(in: nothing)) } }
        try await until("they compute") { try extractor.report().runningCalls == 8 }
        // So that all of them wait for entities, which there are none of.
        try await Task.sleep(nanoseconds: 50_000_000)
        let start = now()
        let other = try await Extractor.open(.file(bundle), options: one)
        let found = try await other.extract(sentence)
        XCTAssertEqual(3, found.count)
        XCTAssertLessThan(now() - start, 2)
        XCTAssertEqual(8, try extractor.report().runningCalls)
        tasks.forEach { $0.cancel() }
        for task in tasks { await assertCancelled { try await task.value } }
    }

    func testAResultTellsWhatComputedIt() async throws {
        func counts<M: AmpouleModel>(_ model: M, _ call: (M) async throws -> Void) async throws {
            try await call(model)
            let once = model.computed
            XCTAssertGreaterThan(once.cpuTokens, 10)
            XCTAssertEqual(0, once.gpuTokens)
            let counted = model.counted()
            XCTAssertEqual(0, counted.computed.cpuTokens)
            for _ in 0..<2 { try await call(counted) }
            XCTAssertEqual(2 * once.cpuTokens, counted.computed.cpuTokens)
            XCTAssertEqual(once, model.computed)
            let other = model.counted()
            counted.close()
            try await call(model)
            model.close()
            for closed in [counted, other] {
                do {
                    try await call(closed)
                    XCTFail("closed")
                } catch AmpouleError.closed {}
            }
        }
        try await counts(try open()) { _ = try await $0.extract(sentence) }
        try await counts(try open()) { _ = try await $0.extractAll([sentence]) }
        try await counts(try open()) { _ = try $0.extractBlocking(sentence) }
        try await counts(try open()) { for try await _ in $0.entities(in: sentence) {} }
        try await counts(try await Embedder.open(.file(bundle))) { _ = try await $0.embed(sentence) }
        try await counts(try await Classifier.open(.file(labelsBundle))) { _ = try await $0.classify(sentence) }
    }

    func testEightTasksAndTwoModels() async throws {
        let models = [try open(), try open()]
        let expected = try await models[0].extract(sentence)
        let found = try await withThrowingTaskGroup(of: [[Entity]].self) { group in
            for i in 0..<8 {
                group.addTask {
                    var all: [[Entity]] = []
                    for call in 0..<25 { all.append(try await models[(i + call) % 2].extract(sentence)) }
                    return all
                }
            }
            return try await group.reduce(into: []) { $0 += $1 }
        }
        XCTAssertEqual(200, found.count)
        XCTAssertEqual([expected], Set(found))
    }

    @MainActor
    func testCallsFromTheMainThread() async throws {
        XCTAssertTrue(Thread.isMainThread)
        let extractor = try Extractor.openBlocking(.file(bundle), options: one)
        XCTAssertEqual(3, try extractor.extractBlocking(sentence).count)
        // The main thread goes on while a task of its own computes.
        let task = Task { @MainActor in try await extractor.extract(longText) }
        var turns = 0
        while try extractor.report().computedTokens < 3_000 {
            turns += 1
            try await Task.sleep(nanoseconds: 1_000_000)
        }
        XCTAssertGreaterThan(turns, 3)
        task.cancel()
        await assertCancelled { try await task.value }
        var found = 0
        for try await _ in extractor.entities(in: sentence) { found += 1 }
        XCTAssertEqual(3, found)
    }
}
