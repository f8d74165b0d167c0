import Ampoule
import Foundation
import XCTest

@testable import NoteMarking

@MainActor
final class NoteScreenTests: XCTestCase {
    private let note = "😀 Started on lisinopril for hypertension; developed angioe\u{301}dema."
    private let root = URL(fileURLWithPath: ProcessInfo.processInfo.environment["AMPOULE_ROOT"] ?? "../..")
    private var bundle: BundleSource { .file(root.appendingPathComponent("models/clinical-en.int8.safetensors")) }

    func testANoteIsMarkedInPieces() async throws {
        let screen = NoteScreen()
        await screen.open(bundle, options: OpenOptions(threads: 1))
        await screen.write(note)?.value
        XCTAssertNil(screen.shown.problem)
        XCTAssertEqual(note, screen.shown.pieces.map(\.text).joined())
        let marked = screen.shown.pieces.filter { $0.label != nil }
        XCTAssertEqual(["lisinopril, Chemical", "hypertension, Disease"], marked.prefix(2).map(\.spoken))
        XCTAssertEqual("😀 Started on ", screen.shown.pieces.first?.spoken)
        let figures = #"^\d+ entit(y|ies), \d+ ms, \d+\.\d MB$"#
        XCTAssertNotNil(screen.shown.figures.range(of: figures, options: .regularExpression), screen.shown.figures)
        await screen.write("")?.value
        XCTAssertEqual([], screen.shown.pieces)
        XCTAssertTrue(screen.shown.figures.hasPrefix("0 entities, "))
        screen.trim()
        await screen.write("lisinopril")?.value
        XCTAssertTrue(screen.shown.figures.hasPrefix("1 entity, "))
    }

    func testEveryKeyEndsWhatTheOneBeforeBegan() async throws {
        var changes: [Shown] = []
        let screen = NoteScreen { changes.append($0) }
        await screen.open(bundle, options: OpenOptions(threads: 1))
        let long = String(repeating: note + "\n", count: 40_000)
        var tasks: [Task<Void, Never>] = []
        let start = DispatchTime.now().uptimeNanoseconds
        for key in 0..<10 {
            tasks.append(try XCTUnwrap(screen.write(long + "\(key)")))
            try await Task.sleep(nanoseconds: 5_000_000)
        }
        tasks.append(try XCTUnwrap(screen.write(note)))
        for task in tasks { await task.value }
        // Ten times the long note take minutes.
        XCTAssertLessThan(Double(DispatchTime.now().uptimeNanoseconds - start) / 1e9, 5)
        XCTAssertEqual(1, changes.count)
        XCTAssertEqual(note, screen.shown.pieces.map(\.text).joined())
    }

    func testWhatGoesWrongIsSaidAsTheUserCanMendIt() async throws {
        let screen = NoteScreen()
        XCTAssertNil(screen.write(note))
        await screen.open(.resource("no-such.safetensors"))
        XCTAssertEqual("The model is missing or damaged. Please download it again.", screen.shown.problem)
        let errors: [any Error] = [
            AmpouleError.updateApp(""), AmpouleError.useCpu(""), AmpouleError.fixInput(""), AmpouleError.closed(""),
            AmpouleError.cancelled(""), AmpouleError.internal(""), CocoaError(.fileNoSuchFile),
        ]
        XCTAssertEqual(6, Set(errors.map(advice)).count)
    }
}
