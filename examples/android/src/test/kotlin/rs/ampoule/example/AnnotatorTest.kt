package rs.ampoule.example

import java.io.File
import java.util.concurrent.Executors
import java.util.concurrent.atomic.AtomicInteger
import kotlin.time.Duration.Companion.seconds
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.cancel
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withContext
import kotlinx.coroutines.withTimeout
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import rs.ampoule.AmpouleException
import rs.ampoule.Extractor
import rs.ampoule.OpenOptions

/** The sample's logic, with a real model, on the JVM. */
class AnnotatorTest {
    private val executor = Executors.newSingleThreadExecutor()
    private val main = executor.asCoroutineDispatcher()
    private val scope = CoroutineScope(main)
    private val extractor = Extractor.openBlocking(
        File(System.getProperty("ampoule.root"), "models/clinical-en.int8.safetensors").path,
        OpenOptions(threads = 1),
    )

    @After
    fun close() {
        scope.cancel()
        extractor.close()
        executor.shutdown()
    }

    private fun Annotator.found(text: String): Marks.Found = runBlocking {
        withTimeout(20.seconds) { marks.first { it is Marks.Found && it.text == text } as Marks.Found }
    }

    @Test
    fun `each key cancels what was computed before it`(): Unit = runBlocking {
        val (begun, cancelled) = AtomicInteger() to AtomicInteger()
        val annotator = Annotator(scope) { text ->
            begun.incrementAndGet()
            try {
                extractor.extract(text)
            } catch (error: CancellationException) {
                cancelled.incrementAndGet()
                throw error
            }
        }
        val long = "No known allergies. ".repeat(50_000)
        withContext(main) { annotator.typed(long) }
        while (extractor.report().runningCalls == 0) delay(1)
        withContext(main) { annotator.typed("lisinopril") }
        val found = annotator.found("lisinopril")
        assertEquals(listOf("lisinopril"), found.entities.map { found.text.substring(it.range) })
        // The first one's coroutine may hear of its end after the second has its answer.
        withTimeout(20.seconds) { while (cancelled.get() == 0) delay(1) }
        assertEquals(2 to 1, begun.get() to cancelled.get())
        assertTrue(extractor.report().computedTokens < 50_000)
        // As one types: the last text is what is shown.
        val note = "Started on lisinopril for hypertension; developed angioedema."
        for (n in 1..note.length) {
            withContext(main) { annotator.typed(note.take(n)) }
            delay(2)
        }
        assertEquals(3, annotator.found(note).entities.size)
        assertEquals(0, extractor.report().runningCalls)
    }

    @Test
    fun `what fails is told, and the next text is marked again`(): Unit = runBlocking {
        val annotator = Annotator(scope) { text -> extractor.extract(text) }
        extractor.close()
        withContext(main) { annotator.typed("lisinopril") }
        val failed = withTimeout(20.seconds) { annotator.marks.first { it is Marks.Failed } as Marks.Failed }
        assertTrue(failed.message, "open it again" in failed.message && "lisinopril" !in failed.message)
        val other = Annotator(scope) { text -> if (text == "wrong") throw closed() else emptyList() }
        withContext(main) { other.typed("wrong") }
        withTimeout(20.seconds) { other.marks.first { it is Marks.Failed } }
        withContext(main) { other.typed("right") }
        assertEquals(0, other.found("right").entities.size)
    }

    private fun closed() = runCatching { extractor.report() }.exceptionOrNull() as AmpouleException

    @Test
    fun `a cancelled screen shows nothing more`(): Unit = runBlocking {
        val annotator = Annotator(scope) { awaitCancellation() }
        withContext(main) { annotator.typed("lisinopril") }
        scope.cancel()
        delay(20)
        assertEquals(Marks.Computing, annotator.marks.value)
    }

    @Test
    fun `memory is in megabytes`() {
        assertTrue("${residentMegabytes()}", residentMegabytes() in 20..20_000)
    }
}
