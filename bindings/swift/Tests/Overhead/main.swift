// What a call of 128 tokens costs in Swift beside Rust, blocks of both in turn; its argument is `bindings/examples/clock.rs`, built.
// Prints microseconds, medians over blocks of medians.

import Ampoule
import Fixtures
import Foundation

let calls = 30
let blocks = 101

/// Of a corpus, as many words as make 128 tokens, the two special ones counted; one more would be a second window.
func textOfAWindow(_ model: Extractor) throws -> (text: String, tokens: Int) {
    let corpus = try String(contentsOf: root.appendingPathComponent("examples/produce/data/bc5cdr/test.tsv"), encoding: .utf8)
    let words = corpus.split(separator: "\n").compactMap { $0.split(separator: "\t").first }
    var fits = (text: "", tokens: 0)
    for count in 1...words.count {
        let text = words.prefix(count).joined(separator: " ")
        let before = try model.report().computedTokens
        _ = try model.extractBlocking(text)
        let tokens = try model.report().computedTokens - before
        if tokens > 128 { break }
        fits = (text, tokens)
    }
    return fits
}

/// Rust's median of as many calls.
final class Rust {
    private let process = Process()
    private let (input, output) = (Pipe(), Pipe())

    init(_ clock: String, _ text: String) throws {
        process.executableURL = URL(fileURLWithPath: clock)
        process.arguments = [bundle.path, text]
        process.standardInput = input
        process.standardOutput = output
        try process.run()
    }

    func median() -> Double {
        input.fileHandleForWriting.write(Data("\(calls)\n".utf8))
        var line = ""
        while !line.hasSuffix("\n") {
            let some = output.fileHandleForReading.availableData
            guard !some.isEmpty else { fatalError("the clock ended") }
            line += String(decoding: some, as: UTF8.self)
        }
        return Double(line.dropLast()) ?? .nan
    }
}

func medianOfCalls(_ call: () throws -> Void) rethrows -> Double {
    var took: [Double] = []
    for _ in 0..<calls {
        let start = now()
        try call()
        took.append((now() - start) * 1e6)
    }
    return took.median
}

func medianOfCalls(_ call: () async throws -> Void) async rethrows -> Double {
    var took: [Double] = []
    for _ in 0..<calls {
        let start = now()
        try await call()
        took.append((now() - start) * 1e6)
    }
    return took.median
}

let start = now()
let model = try Extractor.openBlocking(.file(bundle), options: one)
_ = try model.extractBlocking("Started on lisinopril.")
print(String(format: "open to first entity: %.1f ms", (now() - start) * 1e3))
let (text, tokens) = try textOfAWindow(model)
let rust = try Rust(CommandLine.arguments[1], text)
_ = (rust.median(), try medianOfCalls { _ = try model.extractBlocking(text) })
_ = try await medianOfCalls { _ = try await model.extract(text) }
var rows: [[Double]] = []
for _ in 0..<blocks {
    let there = rust.median()
    let blocking = try medianOfCalls { _ = try model.extractBlocking(text) }
    let asynchronous = try await medianOfCalls { _ = try await model.extract(text) }
    rows.append([there, blocking, asynchronous])
}
/// More of Rust's time than this fails; what `async` adds is told alone.
let limit = 0.05
var isSound = true
for (column, name) in [(1, "blocking"), (2, "async")] {
    let share = rows.map { $0[column] / $0[0] }.median
    if column == 1 { isSound = share <= 1 + limit }
    let (there, here) = (rows.map { $0[0] }.median, rows.map { $0[column] }.median)
    let figures = String(format: "%.0f us, %+.1f %%", here, 100 * (share - 1))
    print("\(tokens) tokens: Rust \(Int(there)) us, Swift, \(name) \(figures)")
}
print("\(isSound ? "ok" : "FAILED"): the blocking call within \(Int(100 * limit)) % of Rust's")
exit(isSound ? 0 : 1)
