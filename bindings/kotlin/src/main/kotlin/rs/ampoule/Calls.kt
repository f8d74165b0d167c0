package rs.ampoule

import java.util.concurrent.atomic.AtomicBoolean
import kotlin.time.Duration
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.launch
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

/** Where calls block, whoever makes them: each computes on its model's own threads, so a few at once are all that a machine has use for. */
internal val calls: CoroutineDispatcher = Dispatchers.IO.limitedParallelism(4, "ampoule")

/** Runs a blocking call, and returns when it has ended; `stop` is called at once when the coroutine is cancelled. */
internal suspend fun <T> running(stop: () -> Unit, call: () -> T): T = withContext(calls) {
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

/** The same with a token of the call's own. */
internal suspend fun <T> cancellable(call: (rs.ampoule.ffi.CancelToken) -> T): T {
    val token = native { rs.ampoule.ffi.CancelToken() }
    // `running` leaves nothing behind that could use the token.
    return token.use { running({ token.cancel() }) { call(token) } }
}
