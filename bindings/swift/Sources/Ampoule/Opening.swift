import Foundation
internal import AmpouleNative

/// Where a model's bundle lies.
public struct BundleSource: Sendable {
    private let file: URL?
    private let part: (offset: UInt64, length: UInt64)?
    private let name: String

    /// A file.
    public static func file(_ url: URL) -> BundleSource {
        BundleSource(file: url, part: nil, name: url.lastPathComponent)
    }

    /// The `length` bytes from byte `offset` of a file, such as an entry of an archive that is stored uncompressed.
    public static func part(of url: URL, offset: UInt64, length: UInt64) -> BundleSource {
        BundleSource(file: url, part: (offset, length), name: url.lastPathComponent)
    }

    /// A file among an app's, extension's or package's resources, such as `"clinical-en.int8.safetensors"`.
    public static func resource(_ name: String, in bundle: Bundle = .main) -> BundleSource {
        BundleSource(file: bundle.url(forResource: name, withExtension: nil), part: nil, name: name)
    }

    func native() throws(AmpouleError) -> AmpouleNative.BundleSource {
        guard let file else { throw .fetchBundle("\(name): not among the resources") }
        guard file.isFileURL else { throw .fixInput("\(name): expected the URL of a file") }
        guard let part else { return .path(path: file.path) }
        return .within(path: file.path, offset: part.offset, length: part.length)
    }
}

/// Where to compute.
public enum Device: Hashable, Sendable {
    /// The processor.
    case cpu
    /// A GPU, once it has proved itself; an error where there is none, and in a library without GPUs.
    case gpu
    /// A GPU where there is one, and the processor until it has proved itself, where it takes longer, and once it fails:
    /// ``ModelReport/gpu`` says how it stands, and ``AmpouleModel/warmUp(isolation:_:)`` waits for it.
    case gpuOrCpu
}

/// How a bundle's file is read.
public enum Load: Hashable, Sendable {
    /// Mapped: no memory of the process's own, and nothing may rewrite, shorten or lock the file while the model is open.
    case map
    /// Copied.
    case copy
}

/// How a model is opened.
public struct OpenOptions: Hashable, Sendable {
    /// Where to compute.
    public var device: Device
    /// The GPU: a part of its adapter's name. Without one the first that is hardware; software in a GPU's place has to be named.
    public var adapter: String?
    /// With ``Device/gpuOrCpu``, the tokens of a batch's longest window from which on the GPU computes; without a number that is measured
    /// while it warms up.
    public var gpuFromTokens: Int?
    /// Threads that compute; 0 for as many as the machine has fast cores, at most four.
    public var threads: Int
    /// The kernel of the processor, as ``ModelReport/kernel`` names it; without one the processor's usual one.
    public var kernel: String?
    /// Whether kernels are measured when the model is opened, and the fastest is used.
    public var autotune: Bool
    /// How the file is read; without a choice mapped on iOS, copied elsewhere.
    public var load: Load?
    /// Whether the data is compared with the digest in its header.
    public var verify: Bool
    /// Entities with a lower score are left out.
    public var minScore: Float
    /// The same by label, in place of ``minScore``.
    public var minScoreByLabel: [String: Float]
    /// What logits are divided by before they become probabilities, in place of the model's own temperature.
    public var temperature: Float?
    /// The most tokens of a window; 0 for as many as the model takes.
    public var maxWindowTokens: Int
    /// The most tokens that are computed at once, which bounds memory; 0 for 1024.
    public var maxBatchTokens: Int

    /// Options, each as described at its property.
    public init(
        device: Device = .cpu,
        adapter: String? = nil,
        gpuFromTokens: Int? = nil,
        threads: Int = 0,
        kernel: String? = nil,
        autotune: Bool = false,
        load: Load? = nil,
        verify: Bool = false,
        minScore: Float = 0,
        minScoreByLabel: [String: Float] = [:],
        temperature: Float? = nil,
        maxWindowTokens: Int = 0,
        maxBatchTokens: Int = 0
    ) {
        self.device = device
        self.adapter = adapter
        self.gpuFromTokens = gpuFromTokens
        self.threads = threads
        self.kernel = kernel
        self.autotune = autotune
        self.load = load
        self.verify = verify
        self.minScore = minScore
        self.minScoreByLabel = minScoreByLabel
        self.temperature = temperature
        self.maxWindowTokens = maxWindowTokens
        self.maxBatchTokens = maxBatchTokens
    }

    func native() throws(AmpouleError) -> AmpouleNative.OpenOptions {
        func count(_ name: String, _ value: Int) throws(AmpouleError) -> UInt32 {
            guard let count = UInt32(exactly: value) else { throw .fixInput("\(name): expected 0 or more, in 32 bits, found \(value)") }
            return count
        }
        let device: DeviceChoice = switch device {
        case .cpu: .cpu
        case .gpu: .gpu
        case .gpuOrCpu: .gpuOrCpu
        }
        let load: LoadMode? = switch load {
        case nil: nil
        case .map: .map
        case .copy: .copy
        }
        return AmpouleNative.OpenOptions(
            device: device,
            adapter: adapter,
            gpuFromTokens: try gpuFromTokens.map { value throws(AmpouleError) in try count("gpuFromTokens", value) },
            threads: try count("threads", threads),
            kernel: kernel,
            autotune: autotune,
            load: load,
            verify: verify,
            minScore: minScore,
            minScoreByLabel: minScoreByLabel,
            temperature: temperature,
            maxWindowTokens: try count("maxWindowTokens", maxWindowTokens),
            maxBatchTokens: try count("maxBatchTokens", maxBatchTokens)
        )
    }
}
