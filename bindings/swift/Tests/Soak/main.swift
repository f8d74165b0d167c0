// How soon a cancelled task's call of 3 MB ends, beside how late an idle one does, and whether a hundred thousand calls of eight tasks
// leave anything behind.

import Ampoule
import Fixtures
import Foundation

let cancels = 1_000
let warm = 10_000
let calls = 90_000
var isSound = true

@MainActor
func check(_ what: String, _ holds: Bool) {
    print("\(holds ? "ok" : "FAILED"): \(what)")
    isSound = isSound && holds
}

func residentBytes() throws -> Int {
    let pages = try String(contentsOfFile: "/proc/self/statm", encoding: .utf8).split(separator: " ")[1]
    return (Int(pages) ?? 0) * sysconf(Int32(_SC_PAGESIZE))
}

/// Milliseconds from a task's cancelling to its end: the median, and the worst.
func delays(_ work: @escaping @Sendable () async throws -> Void) async throws -> (median: Double, worst: Double) {
    var took: [Double] = []
    for i in 0..<cancels {
        let task = Task {
            // Any other end is an error.
            do { try await work() } catch is CancellationError { return now() }
            throw NotCancelled()
        }
        try await Task.sleep(nanoseconds: UInt64(2 + i % 10) * 1_000_000)
        let sent = now()
        task.cancel()
        let ended = try await task.value
        guard ended >= sent else { throw NotCancelled() }
        took.append((ended - sent) * 1e3)
    }
    return (took.median, took.max() ?? .nan)
}

struct NotCancelled: Error {}

struct AnotherAnswer: Error {}

func run(_ model: Extractor, _ count: Int) async throws {
    let texts = [sentence, "No known allergies.", ""]
    var all: [[Entity]] = []
    for text in texts { all.append(try await model.extract(text)) }
    let expected = all
    try await withThrowingTaskGroup(of: Void.self) { group in
        for i in 0..<8 {
            group.addTask {
                for call in 0..<count / 8 {
                    if call % 100 == i { for try await _ in model.entities(in: sentence) { break } }
                    guard try await model.extract(texts[call % 3]) == expected[call % 3] else { throw AnotherAnswer() }
                }
            }
        }
        try await group.waitForAll()
    }
}

let model = try Extractor.openBlocking(.file(bundle), options: one)
let idle = try await delays { try await Task.sleep(nanoseconds: 60_000_000_000) }
let busy = try await delays { _ = try await model.extract(longText) }
let figures = [busy.median, busy.worst, idle.median, idle.worst].map { String(format: "%.1f", $0) }
print("\(cancels) cancelled calls: \(figures[0]) ms, at worst \(figures[1]); idle \(figures[2]) ms, \(figures[3])")
check("the median within 50 ms, the worst within 150", busy.median <= 50 && busy.worst <= 150)
let live = AmpouleLibrary.liveObjects
try await run(model, warm)
let before = try residentBytes()
try await run(model, calls)
let grown = try residentBytes() - before
print("\(calls) calls of 8 tasks: \(before) bytes before, \(grown) more after")
check("at most 8 MB more", grown <= 8_000_000)
try await until("the streams are freed") { AmpouleLibrary.liveObjects == live }
check("as many live objects as before", AmpouleLibrary.liveObjects == live)
exit(isSound ? 0 : 1)
