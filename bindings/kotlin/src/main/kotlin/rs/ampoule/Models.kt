package rs.ampoule

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.time.Duration
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.sync.withPermit
import rs.ampoule.ffi.BundleSource

/**
 * An open model. Its functions may be called from any thread; those that suspend compute elsewhere, and stop when their coroutine is
 * cancelled; those named `...Blocking` compute where they are called, the main thread included, which then waits.
 */
public sealed class Model : AutoCloseable {
    /**
     * The same model as an object whose calls are counted by themselves, so that [computed] tells of one result, or of some. To close it
     * closes it alone; with the model all such are closed.
     */
    public abstract fun counted(): Model

    /** Tokens that the calls of this object came to, by device. A call counts once it has ended, however it did. */
    public abstract val computed: Computed

    /**
     * Where it computes, and what it holds.
     *
     * @throws AmpouleException.Closed
     */
    public abstract fun report(): ModelReport

    /**
     * Computes the golden cases of the model's bundle and compares the answers, which takes as long as a dozen short texts; null where the
     * bundle has no cases.
     *
     * @throws AmpouleException.UseCpu where an answer is wrong; the message says what to try.
     * @throws AmpouleException.Closed
     */
    public abstract fun selfCheckBlocking(): ModelCheck?

    /**
     * Waits until the model's GPU is ready or has failed, and says how it stands; null where it has none. [onProgress] hears how it stands
     * now, and of all that follows, in this coroutine.
     *
     * @throws AmpouleException.Closed
     */
    public suspend fun warmUp(onProgress: (GpuReport) -> Unit = {}): GpuReport? {
        val token = native { rs.ampoule.ffi.CancelToken() }
        return token.use {
            var report = report().gpu
            while (report != null) {
                onProgress(report)
                if (report.state != GpuState.WARMING) break
                val done = report.warmUpDone.toUInt()
                // No call of those that compute: it only waits.
                report = running({ token.cancel() }) { waitForGpu(done, token) }?.here()
            }
            report
        }
    }

    internal abstract fun waitForGpu(done: UInt, cancel: rs.ampoule.ffi.CancelToken): rs.ampoule.ffi.GpuReport?

    /**
     * Frees the memory that is kept for the next call: for `onTrimMemory`.
     *
     * @throws AmpouleException.Closed
     */
    public abstract fun trim()

    /** Closes the model: later calls throw [AmpouleException.Closed], running ones go on, and its memory is freed after the last. */
    public abstract override fun close()
}

/** A bundle in a file, or in part of one. */
private fun source(path: String, offset: Long, length: Long?): BundleSource {
    if (length == null) {
        if (offset != 0L) throw AmpouleException.FixInput("a bundle at byte $offset: its length has to be given, too")
        return BundleSource.Path(path)
    }
    if (offset < 0 || length < 0) throw AmpouleException.FixInput("a bundle of $length bytes at byte $offset: neither is negative")
    return BundleSource.Within(path, offset.toULong(), length.toULong())
}

/** Finds entities in notes of any length. */
public class Extractor private constructor(private val model: rs.ampoule.ffi.Extractor) : Model() {
    public companion object {
        /**
         * Opens a bundle: a file, or the [length] bytes from byte [offset] of one, such as an asset that is stored uncompressed.
         *
         * @throws AmpouleException.FetchBundle
         * @throws AmpouleException.UpdateApp
         * @throws AmpouleException.UseCpu
         * @throws AmpouleException.FixInput
         */
        public suspend fun open(
            path: String,
            options: OpenOptions = OpenOptions(),
            offset: Long = 0,
            length: Long? = null,
        ): Extractor = permits.withPermit { made { openBlocking(path, options, offset, length) } }

        /** The same where it is called. */
        public fun openBlocking(
            path: String,
            options: OpenOptions = OpenOptions(),
            offset: Long = 0,
            length: Long? = null,
        ): Extractor = Extractor(native { rs.ampoule.ffi.Extractor.open(source(path, offset, length), options.there()) })
    }

    /** The labels that entities can have. */
    public val labels: List<String> get() = native { model.labels() }

    /**
     * The entities of a text, in order.
     *
     * @throws AmpouleException.Closed
     */
    public suspend fun extract(text: String): List<Entity> =
        cancellable { model.extract(text.mended(), it, null).entities() }

    /** The entities of several texts, computed together. */
    public suspend fun extractAll(texts: List<String>): List<List<Entity>> =
        cancellable { token -> model.extractBatch(texts.map(String::mended), token, null).map { it.entities() } }

    /**
     * The entities of a text where it is called, until [cancel] is cancelled or [timeout] is over.
     *
     * @throws AmpouleException.Cancelled
     * @throws AmpouleException.Closed
     */
    public fun extractBlocking(text: String, cancel: CancelToken? = null, timeout: Duration? = null): List<Entity> {
        val mended = text.mended()
        return native { model.extract(mended, cancel?.token, timeout.milliseconds()) }.entities()
    }

    /**
     * The entities of a long text, window by window while it is computed. It is computed anew for each collector, and no longer than
     * that one collects.
     */
    public fun entities(text: String): Flow<Entity> = flow {
        val stream = made { model.stream(text.mended(), null, null) }
        try {
            while (true) {
                val some = running({ stream.cancel() }) { stream.next() } ?: break
                some.entities().forEach { emit(it) }
            }
        } finally {
            stream.cancel()
            stream.close()
        }
    }

    override fun counted(): Extractor = Extractor(model.counted())

    override val computed: Computed get() = model.computed().here()

    override fun report(): ModelReport = native { model.report() }.here()

    override fun selfCheckBlocking(): ModelCheck? = native { model.selfCheck() }?.here()

    override fun waitForGpu(done: UInt, cancel: rs.ampoule.ffi.CancelToken): rs.ampoule.ffi.GpuReport? =
        model.waitForGpu(done, cancel, null)

    override fun trim(): Unit = native { model.trim() }

    override fun close(): Unit = native { model.release() }
}

/** Sorts texts by labels. */
public class Classifier private constructor(private val model: rs.ampoule.ffi.Classifier) : Model() {
    public companion object {
        /** Opens a bundle; see [Extractor.open]. */
        public suspend fun open(
            path: String,
            options: OpenOptions = OpenOptions(),
            offset: Long = 0,
            length: Long? = null,
        ): Classifier = permits.withPermit { made { openBlocking(path, options, offset, length) } }

        /** The same where it is called. */
        public fun openBlocking(
            path: String,
            options: OpenOptions = OpenOptions(),
            offset: Long = 0,
            length: Long? = null,
        ): Classifier = Classifier(native { rs.ampoule.ffi.Classifier.open(source(path, offset, length), options.there()) })
    }

    /** The labels, in the model's order. */
    public val labels: List<String> get() = native { model.labels() }

    /**
     * Every label's probability, the likeliest first.
     *
     * @throws AmpouleException.Closed
     */
    public suspend fun classify(text: String): List<LabelScore> =
        cancellable { model.classify(text.mended(), it, null).scores() }

    /** The same for several texts, computed together. */
    public suspend fun classifyAll(texts: List<String>): List<List<LabelScore>> =
        cancellable { token -> model.classifyBatch(texts.map(String::mended), token, null).map { it.scores() } }

    /**
     * The same where it is called, until [cancel] is cancelled or [timeout] is over.
     *
     * @throws AmpouleException.Cancelled
     * @throws AmpouleException.Closed
     */
    public fun classifyBlocking(text: String, cancel: CancelToken? = null, timeout: Duration? = null): List<LabelScore> {
        val mended = text.mended()
        return native { model.classify(mended, cancel?.token, timeout.milliseconds()) }.scores()
    }

    override fun counted(): Classifier = Classifier(model.counted())

    override val computed: Computed get() = model.computed().here()

    override fun report(): ModelReport = native { model.report() }.here()

    override fun selfCheckBlocking(): ModelCheck? = native { model.selfCheck() }?.here()

    override fun waitForGpu(done: UInt, cancel: rs.ampoule.ffi.CancelToken): rs.ampoule.ffi.GpuReport? =
        model.waitForGpu(done, cancel, null)

    override fun trim(): Unit = native { model.trim() }

    override fun close(): Unit = native { model.release() }
}

/** Turns texts into vectors for search and comparison. */
public class Embedder private constructor(private val model: rs.ampoule.ffi.Embedder) : Model() {
    public companion object {
        /** Opens a bundle of any task; see [Extractor.open]. */
        public suspend fun open(
            path: String,
            options: OpenOptions = OpenOptions(),
            offset: Long = 0,
            length: Long? = null,
        ): Embedder = permits.withPermit { made { openBlocking(path, options, offset, length) } }

        /** The same where it is called. */
        public fun openBlocking(
            path: String,
            options: OpenOptions = OpenOptions(),
            offset: Long = 0,
            length: Long? = null,
        ): Embedder = Embedder(native { rs.ampoule.ffi.Embedder.open(source(path, offset, length), options.there()) })
    }

    /** Number of values of a vector. */
    public val width: Int get() = native { model.width() }.toInt()

    /**
     * The vector of a text, [width] values.
     *
     * @throws AmpouleException.Closed
     */
    public suspend fun embed(text: String): FloatArray =
        cancellable { floats(model.embed(text.mended(), it, null)) }

    /** The vectors of several texts, computed together. */
    public suspend fun embedAll(texts: List<String>): List<FloatArray> {
        val all = cancellable { floats(model.embedBatch(texts.map(String::mended), it, null)) }
        val width = all.size / texts.size.coerceAtLeast(1)
        return texts.indices.map { all.copyOfRange(it * width, (it + 1) * width) }
    }

    /**
     * The vector of a text where it is called, until [cancel] is cancelled or [timeout] is over.
     *
     * @throws AmpouleException.Cancelled
     * @throws AmpouleException.Closed
     */
    public fun embedBlocking(text: String, cancel: CancelToken? = null, timeout: Duration? = null): FloatArray {
        val mended = text.mended()
        return floats(native { model.embed(mended, cancel?.token, timeout.milliseconds()) })
    }

    override fun counted(): Embedder = Embedder(model.counted())

    override val computed: Computed get() = model.computed().here()

    override fun report(): ModelReport = native { model.report() }.here()

    override fun selfCheckBlocking(): ModelCheck? = native { model.selfCheck() }?.here()

    override fun waitForGpu(done: UInt, cancel: rs.ampoule.ffi.CancelToken): rs.ampoule.ffi.GpuReport? =
        model.waitForGpu(done, cancel, null)

    override fun trim(): Unit = native { model.trim() }

    override fun close(): Unit = native { model.release() }
}

private fun floats(bytes: ByteArray): FloatArray {
    val floats = FloatArray(bytes.size / 4)
    ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(floats)
    return floats
}
