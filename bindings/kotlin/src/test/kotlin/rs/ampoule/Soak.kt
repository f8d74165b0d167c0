package rs.ampoule

import java.io.File
import kotlin.system.exitProcess
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking

/**
 * How soon a cancelled coroutine's call of 3 MB ends, beside how late an idle one does, and whether a hundred thousand calls of eight
 * coroutines leave anything behind.
 */
internal object Soak {
    private const val CANCELS = 1_000
    private const val WARM = 10_000
    private const val CALLS = 90_000
    private var isSound = true

    private fun check(what: String, holds: Boolean) {
        println("${if (holds) "ok" else "FAILED"}: $what")
        isSound = isSound && holds
    }

    private fun resident(): Long = File("/proc/self/statm").readText().split(" ")[1].toLong() * 4096

    /** Milliseconds from a job's cancelling to its end: the median, and the worst. */
    private fun delays(work: suspend () -> Unit): Pair<Double, Double> = runBlocking {
        val took = List(CANCELS) { i ->
            val ended = CompletableDeferred<Long>()
            // At once, so that no job is cancelled before it has begun.
            val job = launch(Dispatchers.Default, CoroutineStart.UNDISPATCHED) {
                try {
                    work()
                } finally {
                    ended.complete(System.nanoTime())
                }
            }
            Thread.sleep(2L + i % 10)
            val sent = System.nanoTime()
            job.cancel()
            (ended.await() - sent) / 1e6
        }.sorted()
        took[CANCELS / 2] to took.last()
    }

    private fun calls(model: Extractor, count: Int): Unit = runBlocking {
        val texts = listOf(SENTENCE, "No known allergies.", "")
        val expected = texts.map { model.extract(it) }
        (0 until 8).map { i ->
            async(Dispatchers.Default) {
                repeat(count / 8) {
                    if (it % 100 == i) model.entities(SENTENCE).first()
                    check(model.extract(texts[it % 3]) == expected[it % 3]) { "another answer" }
                }
            }
        }.awaitAll()
    }

    @JvmStatic
    fun main(arguments: Array<String>) {
        Extractor.openBlocking(bundle, one).use { model ->
            val text = longText()
            val (idle, idleWorst) = delays { CompletableDeferred<Unit>().await() }
            val (median, worst) = delays { model.extract(text) }
            println("%d cancelled calls: %.1f ms, at worst %.1f; idle %.1f ms, %.1f".format(CANCELS, median, worst, idle, idleWorst))
            check("the median within 50 ms, the worst within 150", median <= 50 && worst <= 150)
            val live = Ampoule.liveObjects()
            calls(model, WARM)
            System.gc()
            val before = resident()
            calls(model, CALLS)
            System.gc()
            val grown = resident() - before
            println("$CALLS calls of 8 coroutines: $before bytes before, $grown more after")
            check("at most 8 MB more", grown <= 8_000_000)
            until("the streams are freed") { Ampoule.liveObjects() == live }
            check("as many live objects as before", Ampoule.liveObjects() == live)
        }
        exitProcess(if (isSound) 0 else 1)
    }
}
