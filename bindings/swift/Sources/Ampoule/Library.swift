internal import AmpouleNative

/// The library as a whole.
public enum AmpouleLibrary {
    /// Its version.
    public static var version: String { AmpouleNative.version() }

    /// Compares each kernel of this processor with the plain one, in a few milliseconds, and gives their names.
    ///
    /// - Throws: ``AmpouleError/useCpu(_:)`` where one computes wrongly; its message names the kernel to open models with.
    public static func selfCheck() throws(AmpouleError) -> [String] { try native(AmpouleNative.selfCheck) }

    /// Models and streams that are open, of the whole process. A closed model counts until its last call ends.
    public static var liveObjects: Int { Int(AmpouleNative.liveObjects()) }
}

/// What an open model holds, and has done.
public struct ModelReport: Hashable, Sendable {
    /// What computes: the processor's kernel, or a GPU's back end and adapter.
    public let device: String
    /// The processor's kernel, as ``OpenOptions/kernel`` takes it.
    public let kernel: String?
    /// Why this device.
    public let reason: String
    /// Threads that compute.
    public let threads: Int
    /// The narrowest type of a matrix in the bundle: `f32`, `f16` or `int8`.
    public let precision: String
    /// Bytes of the bundle's tensors.
    public let weightBytes: Int
    /// Bytes that are kept for the next call, and freed by ``AmpouleModel/trim()``.
    public let workspaceBytes: Int
    /// Tokens computed so far. It stands still while nothing is computed.
    public let computedTokens: Int
    /// Calls and streams that compute now.
    public let runningCalls: Int
}

extension ModelReport {
    init(_ report: AmpouleNative.ModelReport) {
        self.init(
            device: report.device,
            kernel: report.kernel,
            reason: report.reason,
            threads: Int(report.threads),
            precision: report.precision,
            weightBytes: Int(report.weightBytes),
            workspaceBytes: Int(report.workspaceBytes),
            computedTokens: Int(report.computedTokens),
            runningCalls: Int(report.runningCalls)
        )
    }
}

/// How near a model came to the golden cases of its bundle.
public struct ModelCheck: Hashable, Sendable {
    /// The cases, each computed three times.
    public let cases: Int
    /// The largest difference of a value, as a share of its answer's largest magnitude where that is over 1.
    public let largestDifference: Float
    /// The largest that is right.
    public let allowed: Float
}

extension ModelCheck {
    init(_ check: AmpouleNative.ModelCheck) {
        self.init(cases: Int(check.cases), largestDifference: check.largestDifference, allowed: check.allowed)
    }
}
