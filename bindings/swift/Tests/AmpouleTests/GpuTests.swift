import Ampoule
import Fixtures
import Foundation
import XCTest

/// With a library that computes on GPUs, on whatever GPU there is; with the other, that it says so.
final class GpuTests: XCTestCase {
    private let isThere = ProcessInfo.processInfo.environment["AMPOULE_GPU"].map { !$0.isEmpty } ?? false
    private let any = OpenOptions(device: .gpuOrCpu, adapter: "", gpuFromTokens: 1, threads: 1)

    func testALibraryWithoutGpusSaysSoAndTheProcessorComputes() async throws {
        try XCTSkipIf(isThere, "this library has GPUs")
        XCTAssertThrowsError(try Extractor.openBlocking(.file(bundle), options: OpenOptions(device: .gpu))) { error in
            guard case AmpouleError.useCpu(let message) = error else { return XCTFail("\(error)") }
            XCTAssertTrue(message.contains("without GPU support"), message)
        }
        let extractor = try Extractor.openBlocking(.file(bundle), options: any)
        let warmed = try await extractor.warmUp()
        XCTAssertNil(warmed)
        XCTAssertNil(try extractor.report().gpu)
        XCTAssertEqual(3, try extractor.extractBlocking(sentence).count)
    }

    func testAGpuWarmsUpWhileTheProcessorComputesAndThenComputesTheSame() async throws {
        try XCTSkipUnless(isThere, "this library has no GPU")
        let extractor = try await Extractor.open(.file(bundle), options: any)
        let expected = try await extractor.extract(sentence).map { [$0.label, "\($0.utf8)"] }
        XCTAssertEqual(3, expected.count)
        let tokens = extractor.computed.cpuTokens + extractor.computed.gpuTokens
        var heard: [GpuReport] = []
        let warmed = try await extractor.warmUp { heard.append($0) }
        let report = try XCTUnwrap(warmed)
        XCTAssertEqual(.ready, report.state, report.reason ?? "")
        XCTAssertEqual("f32", report.precision)
        XCTAssertEqual(report.warmUpOf, report.warmUpDone)
        XCTAssertEqual(1, report.fromTokens)
        let check = try XCTUnwrap(report.check)
        XCTAssertTrue(check.cases > 0 && check.largestDifference <= check.allowed, "\(check)")
        XCTAssertGreaterThan(heard.count, 1)
        XCTAssertEqual(report, heard.last)
        XCTAssertTrue(heard.dropLast().allSatisfy { $0.state == .warming && $0.warmUpOf == report.warmUpOf })
        XCTAssertEqual(heard.map(\.warmUpDone).sorted(), heard.map(\.warmUpDone))
        let call = extractor.counted()
        let found = try await call.extract(sentence).map { [$0.label, "\($0.utf8)"] }
        XCTAssertEqual(expected, found)
        XCTAssertEqual(tokens, call.computed.gpuTokens)
        XCTAssertEqual(0, call.computed.cpuTokens)
        let gpu = try XCTUnwrap(try extractor.report().gpu)
        XCTAssertTrue(gpu.computedTokens > 10 && gpu.unverifiedBatches > 0, "\(gpu)")
    }

    /// As a view would.
    @MainActor
    func testWhoShowsAWarmUpHearsOfItOnItsOwnActor() async throws {
        try XCTSkipUnless(isThere, "this library has no GPU")
        let extractor = try await Extractor.open(.file(bundle), options: any)
        let shown = Shown()
        let report = try await extractor.warmUp { shown.show($0) }
        XCTAssertEqual(.ready, report?.state)
        XCTAssertGreaterThan(shown.count, 0)
    }

    @MainActor
    private final class Shown {
        var count = 0

        func show(_ report: GpuReport) {
            MainActor.assertIsolated()
            count += 1
        }
    }

    func testWhoWaitsForAGpuCanStopAndTheModelComputesOn() async throws {
        try XCTSkipUnless(isThere, "this library has no GPU")
        let extractor = try await Extractor.open(.file(bundle), options: any)
        let waiting = Task { try await extractor.warmUp() }
        // Until it waits.
        try await Task.sleep(nanoseconds: 50_000_000)
        waiting.cancel()
        let ended = await waiting.result
        XCTAssertThrowsError(try ended.get()) { XCTAssertTrue($0 is CancellationError, "\($0)") }
        XCTAssertEqual(.warming, try extractor.report().gpu?.state)
        let found = try await extractor.extract(sentence)
        XCTAssertEqual(3, found.count)
        XCTAssertThrowsError(try Extractor.openBlocking(.file(bundle), options: OpenOptions(device: .gpu, adapter: "no such adapter")))
    }
}
