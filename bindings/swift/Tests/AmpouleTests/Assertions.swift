import Ampoule
import Foundation
import XCTest

extension AmpouleError {
    /// As the scenario names it.
    var variant: String {
        switch self {
        case .fetchBundle: return "FetchBundle"
        case .updateApp: return "UpdateApp"
        case .useCpu: return "UseCpu"
        case .fixInput: return "FixInput"
        case .cancelled: return "Cancelled"
        case .closed: return "Closed"
        case .internal: return "Internal"
        }
    }
}

func assertThrows<T>(_ variant: String, file: StaticString = #filePath, line: UInt = #line, _ call: () throws -> T) {
    XCTAssertThrowsError(try call(), file: file, line: line) { error in
        XCTAssertEqual(variant, (error as? AmpouleError)?.variant, "\(error)", file: file, line: line)
    }
}

func assertThrows<T>(_ variant: String, file: StaticString = #filePath, line: UInt = #line, _ call: () async throws -> T) async {
    do {
        _ = try await call()
        XCTFail("it threw nothing", file: file, line: line)
    } catch {
        XCTAssertEqual(variant, (error as? AmpouleError)?.variant, "\(error)", file: file, line: line)
    }
}

func assertCancelled<T: Sendable>(
    isolation: isolated (any Actor)? = #isolation,
    file: StaticString = #filePath,
    line: UInt = #line,
    _ call: () async throws -> T
) async {
    do {
        _ = try await call()
        XCTFail("it threw nothing", file: file, line: line)
    } catch {
        XCTAssertTrue(error is CancellationError, "\(error)", file: file, line: line)
    }
}

func collected(_ entities: Entities) async throws -> [Entity] {
    var all: [Entity] = []
    for try await entity in entities { all.append(entity) }
    return all
}

extension XCTestCase {
    /// A folder that is gone after the test.
    func temporaryFolder() throws -> URL {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("ampoule-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        addTeardownBlock { try? FileManager.default.removeItem(at: folder) }
        return folder
    }
}
