package rs.ampoule

import rs.ampoule.ffi.DeviceChoice
import rs.ampoule.ffi.InternalException
import rs.ampoule.ffi.LoadMode

/** What went wrong, by what an app can do about it. No message holds any of a text. */
public sealed class AmpouleException(message: String) : Exception(message) {
    /** The bundle is not there, cannot be read, or is damaged: fetch it again. */
    public class FetchBundle internal constructor(message: String) : AmpouleException(message)

    /** The bundle is sound, but not for this version of the library or for this task: update the app, or open another bundle. */
    public class UpdateApp internal constructor(message: String) : AmpouleException(message)

    /** The device or kernel that was asked for is not to be had here: open the model on the processor. */
    public class UseCpu internal constructor(message: String) : AmpouleException(message)

    /** An option or a text cannot be used as it is: mend it. */
    public class FixInput internal constructor(message: String) : AmpouleException(message)

    /**
     * The call's token was cancelled, or its time was over; the model stays usable. A coroutine that is cancelled gets its own
     * `CancellationException` instead.
     */
    public class Cancelled internal constructor(message: String) : AmpouleException(message)

    /** The model was closed before the call: open it again. */
    public class Closed internal constructor(message: String) : AmpouleException(message)

    /** A defect of this library. */
    public class Internal internal constructor(message: String) : AmpouleException(message)
}

/** Runs a call of the library; its errors become ours, and carry no cause, whose fields might hold the text. */
internal inline fun <T> native(call: () -> T): T = try {
    // The generated code compares the library with its classes only here, the first time.
    rs.ampoule.ffi.uniffiEnsureInitialized()
    call()
} catch (error: rs.ampoule.ffi.AmpouleException) {
    throw translated(error)
} catch (_: InternalException) {
    throw AmpouleException.Internal("a defect of ampoule ended the call; please report what was done")
} catch (error: LinkageError) {
    throw AmpouleException.UpdateApp(
        "ampoule's native library is not there, or not of the version of its Kotlin classes (${error.javaClass.simpleName}); " +
            "package both from one release",
    )
}

internal fun translated(error: rs.ampoule.ffi.AmpouleException): AmpouleException {
    val message = error.message.orEmpty()
    return when (error) {
        is rs.ampoule.ffi.AmpouleException.FetchBundle -> AmpouleException.FetchBundle(message)
        is rs.ampoule.ffi.AmpouleException.UpdateApp -> AmpouleException.UpdateApp(message)
        is rs.ampoule.ffi.AmpouleException.UseCpu -> AmpouleException.UseCpu(message)
        is rs.ampoule.ffi.AmpouleException.FixInput -> AmpouleException.FixInput(message)
        is rs.ampoule.ffi.AmpouleException.Cancelled -> AmpouleException.Cancelled(message)
        is rs.ampoule.ffi.AmpouleException.Closed -> AmpouleException.Closed(message)
        is rs.ampoule.ffi.AmpouleException.Internal -> AmpouleException.Internal(message)
    }
}

/** A piece of a text with a label. It holds no text itself; its range is of whole grapheme clusters. */
public data class Entity(
    /** The label's name. */
    val label: String,
    /** How probable it is, to the model, that the entity has this label and exactly these words, in 0..1. */
    val score: Float,
    /** In UTF-16 code units, as strings count here: `text.substring(entity.range)`. */
    val range: IntRange,
    /** The same place in bytes of UTF-8. */
    val utf8: IntRange,
    /** The same place in code points. */
    val codePoints: IntRange,
)

internal fun List<rs.ampoule.ffi.Entity>.entities(): List<Entity> = map {
    Entity(
        it.label,
        it.score,
        it.utf16Start.toInt() until it.utf16End.toInt(),
        it.utf8Start.toInt() until it.utf8End.toInt(),
        it.scalarStart.toInt() until it.scalarEnd.toInt(),
    )
}

/** One label of a text. */
public data class LabelScore(
    /** The label's name. */
    val label: String,
    /** Its probability, in 0..1: of all labels together 1 where one of them holds, each for itself where several may. */
    val score: Float,
)

internal fun List<rs.ampoule.ffi.LabelScore>.scores(): List<LabelScore> = map { LabelScore(it.label, it.score) }

/** Where to compute. */
public enum class Device {
    /** The processor. */
    CPU,

    /** A GPU, once it has proved itself; an error where there is none, and in a library without GPUs. */
    GPU,

    /**
     * A GPU where there is one, and the processor until it has proved itself, where it takes longer, and once it fails:
     * [ModelReport.gpu] says how it stands, and [Model.warmUp] waits for it.
     */
    GPU_OR_CPU,
}

/** How a bundle's file is read. */
public enum class Load {
    /** Mapped: no memory of the process's own, and nothing may rewrite or shorten the file while the model is open. */
    MAP,

    /** Copied. */
    COPY,
}

/** How a model is opened. */
public data class OpenOptions(
    /** Where to compute. */
    val device: Device = Device.CPU,
    /** The GPU: a part of its adapter's name. Without one the first that is hardware; software in a GPU's place has to be named. */
    val adapter: String? = null,
    /**
     * With [Device.GPU_OR_CPU], the tokens of a batch's longest window from which on the GPU computes; without a number that is measured
     * while it warms up.
     */
    val gpuFromTokens: Int? = null,
    /** Threads that compute; 0 for as many as the machine has fast cores, at most four. */
    val threads: Int = 0,
    /** The kernel of the processor, as [ModelReport.kernel] names it; without one the processor's usual one. */
    val kernel: String? = null,
    /** Whether kernels are measured when the model is opened, and the fastest is used. */
    val autotune: Boolean = false,
    /** How the file is read; without a choice mapped on Android, copied elsewhere. */
    val load: Load? = null,
    /** Whether the data is compared with the digest in its header. */
    val verify: Boolean = false,
    /** Entities with a lower score are left out. */
    val minScore: Float = 0f,
    /** The same by label, in place of [minScore]. */
    val minScoreByLabel: Map<String, Float> = emptyMap(),
    /** What logits are divided by before they become probabilities, in place of the model's own temperature. */
    val temperature: Float? = null,
    /** The most tokens of a window; 0 for as many as the model takes. */
    val maxWindowTokens: Int = 0,
    /** The most tokens that are computed at once, which bounds memory; 0 for 1024. */
    val maxBatchTokens: Int = 0,
) {
    internal fun there(): rs.ampoule.ffi.OpenOptions {
        val counts = listOf(
            "gpuFromTokens" to (gpuFromTokens ?: 0), "threads" to threads, "maxWindowTokens" to maxWindowTokens,
            "maxBatchTokens" to maxBatchTokens,
        )
        for ((name, value) in counts) {
            if (value < 0) throw AmpouleException.FixInput("$name: expected 0 or more, found $value")
        }
        return rs.ampoule.ffi.OpenOptions(
            device = when (device) {
                Device.CPU -> DeviceChoice.CPU
                Device.GPU -> DeviceChoice.GPU
                Device.GPU_OR_CPU -> DeviceChoice.GPU_OR_CPU
            },
            adapter = adapter,
            gpuFromTokens = gpuFromTokens?.toUInt(),
            threads = threads.toUInt(),
            kernel = kernel,
            autotune = autotune,
            load = when (load) {
                null -> null
                Load.MAP -> LoadMode.MAP
                Load.COPY -> LoadMode.COPY
            },
            verify = verify,
            minScore = minScore,
            minScoreByLabel = minScoreByLabel,
            temperature = temperature,
            maxWindowTokens = maxWindowTokens.toUInt(),
            maxBatchTokens = maxBatchTokens.toUInt(),
        )
    }
}

/** What an open model holds, and has done. */
public data class ModelReport(
    /** What computes: the processor's kernel, or a GPU. */
    val device: String,
    /** The processor's kernel, as [OpenOptions.kernel] takes it. */
    val kernel: String?,
    /** Why this device. */
    val reason: String,
    /** Threads that compute. */
    val threads: Int,
    /** The narrowest type of a matrix in the bundle: f32, f16 or int8. */
    val precision: String,
    /** Bytes of the bundle's tensors. */
    val weightBytes: Long,
    /** Bytes that are kept for the next call, and freed by [Model.trim]. */
    val workspaceBytes: Long,
    /** Tokens computed so far. It stands still while nothing is computed. */
    val computedTokens: Long,
    /** Calls that compute now. */
    val runningCalls: Int,
    /** How its GPU stands, where it has one. */
    val gpu: GpuReport?,
)

internal fun rs.ampoule.ffi.ModelReport.here(): ModelReport = ModelReport(
    device, kernel, reason, threads.toInt(), precision, weightBytes.toLong(), workspaceBytes.toLong(),
    computedTokens.toLong(), runningCalls.toInt(), gpu?.here(),
)

/** Tokens that calls computed, special ones counted, by the device that did; windows of one text may be computed by both. */
public data class Computed(
    /** On the processor. */
    val cpuTokens: Long,
    /** On the GPU. */
    val gpuTokens: Long,
)

internal fun rs.ampoule.ffi.Computed.here(): Computed = Computed(cpuTokens.toLong(), gpuTokens.toLong())

/** How far a model's GPU has come. */
public enum class GpuState {
    /** It loads, compiles, and proves itself; the processor answers meanwhile, where it may. */
    WARMING,

    /** It computes. */
    READY,

    /** It computes no more: [GpuReport.reason] says why. */
    FAILED,
}

/** What a model's GPU is, and has done. */
public data class GpuReport(
    /** The adapter, as its driver names it. */
    val adapter: String,
    /** What it computes in: f32 or f16. */
    val precision: String,
    /** How far it has come. */
    val state: GpuState,
    /** Why it failed, or what was not proved. */
    val reason: String?,
    /** Batches of its warm-up that it has computed; the first compiles its kernels, and takes the longest. */
    val warmUpDone: Int,
    /** All of them. */
    val warmUpOf: Int,
    /** How near it came to the bundle's golden cases; null before, and where the bundle has none. */
    val check: ModelCheck?,
    /**
     * Where the processor is there too, the tokens of a batch's longest window from which on the GPU computes; null while that is not
     * known, and where it takes longer at every length. [OpenOptions.gpuFromTokens] pins a number.
     */
    val fromTokens: Int?,
    /** Tokens of the batches that it answered. */
    val computedTokens: Long,
    /** The batches that it answered since it last proved itself: where it failed, what nothing vouches for. */
    val unverifiedBatches: Long,
)

internal fun rs.ampoule.ffi.GpuReport.here(): GpuReport = GpuReport(
    adapter,
    precision,
    when (state) {
        rs.ampoule.ffi.GpuState.WARMING -> GpuState.WARMING
        rs.ampoule.ffi.GpuState.READY -> GpuState.READY
        rs.ampoule.ffi.GpuState.FAILED -> GpuState.FAILED
    },
    reason, warmUpDone.toInt(), warmUpOf.toInt(), check?.here(), fromTokens?.toInt(), computedTokens.toLong(),
    unverifiedBatches.toLong(),
)

/** How near a model came to the golden cases of its bundle. */
public data class ModelCheck(
    /** The cases, each computed three times. */
    val cases: Int,
    /** The largest difference of a value, as a share of its answer's largest magnitude where that is over 1. */
    val largestDifference: Float,
    /** The largest that is right. */
    val allowed: Float,
)

internal fun rs.ampoule.ffi.ModelCheck.here(): ModelCheck = ModelCheck(cases.toInt(), largestDifference, allowed)

/** The library as a whole. */
public object Ampoule {
    /** Its version. */
    public fun version(): String = native { rs.ampoule.ffi.version() }

    /**
     * Compares each kernel of this processor with the plain one, in a few milliseconds, and gives their names.
     *
     * @throws AmpouleException.UseCpu where one computes wrongly; the message names the kernel to open models with.
     */
    public fun selfCheck(): List<String> = native { rs.ampoule.ffi.selfCheck() }

    /** Models and streams that are open, of the whole process. A closed model counts until its last call ends. */
    public fun liveObjects(): Long = native { rs.ampoule.ffi.liveObjects() }.toLong()
}

/** The text with U+FFFD for each surrogate without its partner, which UTF-8 cannot say; it is one unit too, so offsets hold. */
internal fun String.mended(): String {
    var mended: StringBuilder? = null
    var at = 0
    while (at < length) {
        val char = this[at]
        if (char.isSurrogate()) {
            if (char.isHighSurrogate() && at + 1 < length && this[at + 1].isLowSurrogate()) {
                at += 2
                continue
            }
            val builder = mended ?: StringBuilder(this).also { mended = it }
            builder.setCharAt(at, '\uFFFD')
        }
        at += 1
    }
    return mended?.toString() ?: this
}
