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
    /// How its GPU stands, where it has one.
    public let gpu: GpuReport?
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
            runningCalls: Int(report.runningCalls),
            gpu: report.gpu.map(GpuReport.init)
        )
    }
}

/// Tokens that calls computed, special ones counted, by the device that did; windows of one text may be computed by both.
public struct Computed: Hashable, Sendable {
    /// On the processor.
    public let cpuTokens: Int
    /// On the GPU.
    public let gpuTokens: Int
}

extension Computed {
    init(_ computed: AmpouleNative.Computed) {
        self.init(cpuTokens: Int(computed.cpuTokens), gpuTokens: Int(computed.gpuTokens))
    }
}

/// How far a model's GPU has come.
public enum GpuState: Hashable, Sendable {
    /// It loads, compiles, and proves itself; the processor answers meanwhile, where it may.
    case warming
    /// It computes.
    case ready
    /// It computes no more: ``GpuReport/reason`` says why.
    case failed
}

/// What a model's GPU is, and has done.
public struct GpuReport: Hashable, Sendable {
    /// The adapter, as its driver names it.
    public let adapter: String
    /// What it computes in: `f32` or `f16`.
    public let precision: String
    /// How far it has come.
    public let state: GpuState
    /// Why it failed, or what was not proved.
    public let reason: String?
    /// Batches of its warm-up that it has computed; the first compiles its kernels, and takes the longest.
    public let warmUpDone: Int
    /// All of them.
    public let warmUpOf: Int
    /// How near it came to the bundle's golden cases; nil before, and where the bundle has none.
    public let check: ModelCheck?
    /// Where the processor is there too, the tokens of a batch's longest window from which on the GPU computes; nil while that is not known,
    /// and where it takes longer at every length. ``OpenOptions/gpuFromTokens`` pins a number.
    public let fromTokens: Int?
    /// Tokens of the batches that it answered.
    public let computedTokens: Int
    /// The batches that it answered since it last proved itself: where it failed, what nothing vouches for.
    public let unverifiedBatches: Int
}

extension GpuReport {
    init(_ report: AmpouleNative.GpuReport) {
        let state: GpuState = switch report.state {
        case .warming: .warming
        case .ready: .ready
        case .failed: .failed
        }
        self.init(
            adapter: report.adapter,
            precision: report.precision,
            state: state,
            reason: report.reason,
            warmUpDone: Int(report.warmUpDone),
            warmUpOf: Int(report.warmUpOf),
            check: report.check.map(ModelCheck.init),
            fromTokens: report.fromTokens.map(Int.init),
            computedTokens: Int(report.computedTokens),
            unverifiedBatches: Int(report.unverifiedBatches)
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
