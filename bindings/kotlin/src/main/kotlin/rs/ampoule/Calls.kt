package rs.ampoule

import java.util.concurrent.atomic.AtomicBoolean
import kotlin.time.Duration
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.launch
import kotlinx.coroutines.sync.Semaphore
import kotlinx.coroutines.sync.withPermit
import kotlinx.coroutines.withContext

/** Ends the blocking calls that it was given to, from any thread. */
public class CancelToken {
    internal val token = native { rs.ampoule.ffi.CancelToken() }

    /** Ends the calls that have this token, and those to come, with [AmpouleException.Cancelled]. */
    public fun cancel(): Unit = token.cancel()

    /** Whether it has been cancelled. */
    public val isCancelled: Boolean get() = token.isCancelled()
}

internal fun Duration?.milliseconds(): ULong? = this?.inWholeMilliseconds?.coerceAtLeast(0)?.toULong()

/** Where calls block: nothing waits for a thread here, since what waits for one cannot be cancelled until it has one. */
internal val threads: CoroutineDispatcher = Dispatchers.IO.limitedParallelism(Int.MAX_VALUE, "ampoule")

/** Calls at once, whoever makes them: each computes on its thread and its model's, so a few are all that a machine has use for. */
internal val permits = Semaphore(4)

/** Runs a blocking call, and returns when it has ended; `stop` is called at once when the coroutine is cancelled. */
internal suspend fun <T> running(stop: () -> Unit, call: () -> T): T = withContext(threads) {
    val hasEnded = AtomicBoolean()
    // Resumed by whoever cancels, in whose thread it runs.
    val watcher = launch(Dispatchers.Unconfined, CoroutineStart.UNDISPATCHED) {
        try {
            awaitCancellation()
        } finally {
            if (!hasEnded.get()) stop()
        }
    }
    try {
        native(call)
    } catch (error: AmpouleException.Cancelled) {
        ensureActive()
        throw error
    } finally {
        hasEnded.set(true)
        watcher.cancel()
    }
}

/** Makes what is to be closed; where the coroutine is cancelled meanwhile nobody gets it, and it is closed here. */
internal suspend fun <T : AutoCloseable> made(make: () -> T): T {
    var made: T? = null
    try {
        return withContext(threads) { native(make).also { made = it } }
    } catch (error: CancellationException) {
        made?.close()
        throw error
    }
}

/** `running` with a token of the call's own, one of a few at once. */
internal suspend fun <T> cancellable(call: (rs.ampoule.ffi.CancelToken) -> T): T = permits.withPermit {
    val token = native { rs.ampoule.ffi.CancelToken() }
    // `running` leaves nothing behind that could use the token.
    token.use { running({ token.cancel() }) { call(token) } }
}
