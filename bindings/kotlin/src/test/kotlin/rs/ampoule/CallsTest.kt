package rs.ampoule

import java.io.File
import java.io.PrintWriter
import java.io.StringWriter
import java.nio.ByteBuffer
import java.nio.file.Files
import java.nio.file.StandardCopyOption.ATOMIC_MOVE
import java.util.concurrent.atomic.AtomicReference
import java.util.zip.CRC32
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream
import kotlin.concurrent.thread
import kotlin.time.Duration
import kotlin.time.Duration.Companion.milliseconds
import kotlin.time.Duration.Companion.seconds
import kotlin.time.measureTime
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.TimeoutCancellationException
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.joinAll
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import kotlinx.coroutines.yield
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** Calls from coroutines and threads: cancelled, streamed, misused, and what is never said of a text. */
class CallsTest {
    private lateinit var extractor: Extractor

    @BeforeEach
    fun open() {
        extractor = Extractor.openBlocking(bundle, one)
    }

    @AfterEach
    fun close() = extractor.close()

    private fun pieces(text: String, entities: List<Entity>) = entities.map { text.substring(it.range) }

    @Test
    fun `substrings of the text are the entities`(): Unit = runBlocking {
        val found = extractor.extract(SENTENCE)
        assertEquals(listOf("lisinopril", "hypertension", "angioedema"), pieces(SENTENCE, found))
        assertEquals(listOf("Chemical", "Disease", "Disease"), found.map { it.label })
        assertEquals(found, extractor.extractBlocking(SENTENCE))
        assertEquals(emptyList<Entity>(), extractor.extract(""))
    }

    @Test
    fun `many texts and flows give what single calls give`(): Unit = runBlocking {
        val texts = listOf("", SENTENCE, "é lisinopril", "No known allergies.")
        for ((text, found) in texts zip extractor.extractAll(texts)) {
            assertEquals(pieces(text, extractor.extract(text)), pieces(text, found))
        }
        val text = "$SENTENCE 😀\r\n".repeat(400)
        assertEquals(extractor.extract(text), extractor.entities(text).toList())
        Embedder.open(bundle, one).use { embedder ->
            val vectors = embedder.embedAll(texts)
            assertEquals(texts.map { embedder.width }, vectors.map { it.size })
            assertEquals(emptyList<FloatArray>(), embedder.embedAll(emptyList()))
            assertEquals(embedder.embedBlocking(SENTENCE).toList(), embedder.embed(SENTENCE).toList())
        }
        Classifier.open(labelsBundle, one).use { classifier ->
            assertEquals(texts.size, classifier.classifyAll(texts).size)
            assertEquals(classifier.classifyBlocking(SENTENCE), classifier.classify(SENTENCE))
        }
    }

    @Test
    fun `cancelling a coroutine ends the call and Rust stops`(): Unit = runBlocking {
        val text = longText()
        val outcome = AtomicReference<Throwable>()
        val job = launch(Dispatchers.Default) {
            try {
                extractor.extract(text)
            } catch (error: Throwable) {
                outcome.set(error)
                throw error
            }
        }
        until("it computes") { extractor.report().computedTokens > 2_000 }
        assertEquals(1, extractor.report().runningCalls)
        job.cancelAndJoin()
        assertTrue(outcome.get() is CancellationException, "${outcome.get()}")
        val ended = extractor.report()
        assertEquals(0, ended.runningCalls)
        Thread.sleep(50)
        assertEquals(ended.computedTokens, extractor.report().computedTokens)
        // Before the start, the library is not asked.
        val early = launch { extractor.extract(text) }
        early.cancelAndJoin()
        assertEquals(ended.computedTokens, extractor.report().computedTokens)
        // After the end, nothing happens.
        val late = async { extractor.extract(SENTENCE) }
        val found = late.await()
        late.cancel()
        assertEquals(found, extractor.extract(SENTENCE))
    }

    @Test
    fun `time runs out, in coroutines and in blocking calls`(): Unit = runBlocking {
        val text = longText()
        assertThrows(TimeoutCancellationException::class.java) { runBlocking { withTimeout(30.milliseconds) { extractor.extract(text) } } }
        assertEquals(0, extractor.report().runningCalls)
        for (timeout in listOf(Duration.ZERO, 30.milliseconds, (-5).seconds)) {
            assertThrows(AmpouleException.Cancelled::class.java) { extractor.extractBlocking(text, timeout = timeout) }
        }
        assertEquals(3, extractor.extractBlocking(SENTENCE, timeout = Duration.INFINITE).size)
        val token = CancelToken()
        thread { Thread.sleep(30); token.cancel() }
        assertThrows(AmpouleException.Cancelled::class.java) { extractor.extractBlocking(text, token) }
        assertTrue(token.isCancelled)
        assertThrows(AmpouleException.Cancelled::class.java) { extractor.extractBlocking(SENTENCE, token) }
    }

    /** It computes no more, long before the end of the text. */
    private fun assertStops(text: String, tokensBefore: Long) {
        until("it stops", 2.seconds) { extractor.report().runningCalls == 0 }
        val tokens = extractor.report().computedTokens - tokensBefore
        assertTrue(tokens < text.count { it == ' ' } / 10, "$tokens tokens")
    }

    @Test
    fun `a flow gives entities at once and stops with its collector`(): Unit = runBlocking {
        val text = longText()
        var before = extractor.report().computedTokens
        val first = extractor.entities(text).first()
        assertEquals("lisinopril", text.substring(first.range))
        assertStops(text, before)
        before = extractor.report().computedTokens
        assertEquals(7, extractor.entities(text).take(7).toList().size)
        assertStops(text, before)
        before = extractor.report().computedTokens
        // While it waits, too: there is nothing to find here.
        val job = launch(Dispatchers.Default) { extractor.entities(NOTHING).toList() }
        until("it computes") { extractor.report().runningCalls == 1 }
        Thread.sleep(20)
        job.cancelAndJoin()
        assertStops(NOTHING, before)
        // Each collector has its own.
        val flow = extractor.entities(SENTENCE)
        assertEquals(flow.toList(), flow.toList())
    }

    @Test
    fun `a call that waits for its turn is cancelled at once`(): Unit = runBlocking {
        val text = longText()
        val jobs = List(4) { launch(Dispatchers.Default) { extractor.extract(text) } }
        until("they compute") { extractor.report().runningCalls == 4 }
        val took = measureTime {
            assertThrows(TimeoutCancellationException::class.java) { runBlocking { withTimeout(100.milliseconds) { extractor.extract("x") } } }
        }
        assertTrue(took < 2.seconds, "$took")
        val open = measureTime {
            assertThrows(TimeoutCancellationException::class.java) { runBlocking { withTimeout(100.milliseconds) { Extractor.open(bundle, one) } } }
        }
        assertTrue(open < 2.seconds, "$open")
        assertEquals(List(4) { true }, jobs.map { it.isActive })
        jobs.forEach { it.cancel() }
        jobs.joinAll()
        assertEquals(3, extractor.extract(SENTENCE).size)
    }

    @Test
    fun `flows that wait leave calls their turn`(): Unit = runBlocking {
        val jobs = List(8) { launch(Dispatchers.Default) { extractor.entities(NOTHING).toList() } }
        until("they compute") { extractor.report().runningCalls == 8 }
        // So that all of them wait for entities, which there are none of.
        Thread.sleep(50)
        val took = measureTime { Extractor.open(bundle, one).use { assertEquals(3, it.extract(SENTENCE).size) } }
        assertTrue(took < 2.seconds, "$took")
        assertEquals(List(8) { true }, jobs.map { it.isActive })
        jobs.forEach { it.cancel() }
        jobs.joinAll()
    }

    @Test
    fun `eight threads and two models`(): Unit = runBlocking {
        val expected = extractor.extract(SENTENCE)
        Extractor.open(bundle, one).use { other ->
            val found = (0 until 8).map { i ->
                async(Dispatchers.IO) {
                    (0 until 25).map { (if ((i + it) % 2 == 0) extractor else other).extract(SENTENCE) }
                }
            }.awaitAll().flatten()
            assertEquals(200, found.size)
            assertEquals(setOf(expected), found.toSet())
        }
    }

    @Test
    fun `reports and trim`() {
        extractor.extractBlocking(SENTENCE)
        val report = extractor.report()
        assertEquals("int8" to 1, report.precision to report.threads)
        assertTrue(report.kernel in Ampoule.selfCheck())
        assertTrue(report.workspaceBytes > 0 && report.weightBytes > 1_000_000)
        val check = extractor.selfCheckBlocking()!!
        assertTrue(check.cases > 0 && check.largestDifference in 0f..check.allowed)
        extractor.trim()
        assertEquals(0, extractor.report().workspaceBytes)
        assertEquals(3, extractor.extractBlocking(SENTENCE).size)
        assertTrue(Regex("""\d+\.\d+\.\d+""").matches(Ampoule.version()))
    }

    @Test
    fun `a result tells what computed it`(): Unit = runBlocking {
        fun <M : Model> counts(model: M, counted: M, call: suspend (M) -> Unit) = model.use {
            runBlocking { call(model) }
            val once = model.computed
            assertTrue(once.cpuTokens > 10 && once.gpuTokens == 0L, once.toString())
            assertEquals(Computed(0, 0), counted.computed)
            repeat(2) { runBlocking { call(counted) } }
            assertEquals(listOf(Computed(2 * once.cpuTokens, 0), once), listOf(counted.computed, model.computed))
            counted.close()
            assertThrows(AmpouleException.Closed::class.java) { runBlocking { call(counted) } }
            runBlocking { call(model) }
        }
        for (call in listOf<suspend (Extractor) -> Unit>(
            { it.extract(SENTENCE) }, { it.extractBlocking(SENTENCE) }, { it.extractAll(listOf(SENTENCE)) },
            { it.entities(SENTENCE).toList() },
        )) {
            val model = Extractor.open(bundle, one)
            counts(model, model.counted(), call)
        }
        Embedder.open(bundle, one).let { model -> counts(model, model.counted()) { it.embed(SENTENCE) } }
        Classifier.open(labelsBundle, one).let { model -> counts(model, model.counted()) { it.classify(SENTENCE) } }
    }

    @Test
    fun `a closed model is an exception whenever`(): Unit = runBlocking {
        val before = Ampoule.liveObjects()
        val model = Extractor.open(bundle, one)
        val job = launch(Dispatchers.Default) { model.extract(longText()) }
        until("it computes") { model.report().runningCalls == 1 }
        model.close()
        model.close()
        for (use in listOf<suspend () -> Unit>(
            { model.extract(SENTENCE) },
            { model.extractAll(listOf(SENTENCE)) },
            { model.extractBlocking(SENTENCE) },
            { model.entities(SENTENCE).toList() },
            { model.report() },
            { model.labels },
            { model.trim() },
        )) {
            assertThrows(AmpouleException.Closed::class.java) { runBlocking { use() } }
        }
        assertEquals(before + 1, Ampoule.liveObjects())
        job.cancelAndJoin()
        until("it is freed") { Ampoule.liveObjects() == before }
    }

    @Test
    fun `what is opened for a cancelled coroutine is closed`(): Unit = runBlocking {
        val before = Ampoule.liveObjects()
        lateinit var job: Job
        job = launch(Dispatchers.Default, CoroutineStart.LAZY) {
            made { Extractor.openBlocking(bundle, one).also { job.cancel() } }
        }
        job.join()
        assertTrue(job.isCancelled)
        assertEquals(before, Ampoule.liveObjects())
        // Whenever it is cancelled.
        repeat(40) { i ->
            val opens = launch(Dispatchers.Default) { Extractor.open(bundle, one).close() }
            delay(i.milliseconds / 4)
            opens.cancelAndJoin()
            assertEquals(before, Ampoule.liveObjects())
        }
    }

    @Test
    fun `options that cannot be`() {
        for (options in listOf(
            OpenOptions(threads = -1), OpenOptions(threads = 100_000), OpenOptions(temperature = 0f), OpenOptions(maxWindowTokens = 2),
        )) {
            assertThrows(AmpouleException.FixInput::class.java) { Extractor.openBlocking(bundle, options) }
        }
        assertThrows(AmpouleException.FixInput::class.java) { Extractor.openBlocking(bundle, one, offset = -1, length = 5) }
        assertThrows(AmpouleException.FixInput::class.java) { Extractor.openBlocking(bundle, one, offset = 4) }
        assertThrows(AmpouleException.FixInput::class.java) { Extractor.openBlocking(bundle, one, offset = 0, length = 1L shl 40) }
        Extractor.openBlocking(bundle, one.copy(minScoreByLabel = mapOf("Disease" to 1f))).use {
            assertEquals(listOf("Chemical"), it.extractBlocking(SENTENCE).map(Entity::label))
        }
    }

    @Test
    fun `bundles in zips, and replaced while open`(@TempDir folder: File) {
        val bytes = File(bundle).readBytes()
        val offsets = (0 until 4).map { extra ->
            val zip = File(folder, "$extra.apk")
            val name = "model" + "x".repeat(extra)
            ZipOutputStream(zip.outputStream()).use {
                it.putNextEntry(ZipEntry(name).apply {
                    method = ZipEntry.STORED
                    size = bytes.size.toLong()
                    crc = CRC32().apply { update(bytes) }.value
                })
                it.write(bytes)
            }
            // The entry's header and its name stand before its data.
            val offset = 30L + name.length
            for (load in Load.entries) {
                Extractor.openBlocking(zip.path, one.copy(load = load, verify = true), offset, bytes.size.toLong()).use {
                    assertEquals(3, it.extractBlocking(SENTENCE).size)
                }
            }
            offset % 4
        }
        assertEquals(setOf(0L, 1L, 2L, 3L), offsets.toSet())
        val path = File(folder, "model.safetensors").apply { writeBytes(bytes) }
        Extractor.openBlocking(path.path, one.copy(load = Load.MAP)).use { model ->
            val new = File(folder, "new").apply { writeText("no bundle") }
            Files.move(new.toPath(), path.toPath(), ATOMIC_MOVE)
            assertEquals(3, model.extractBlocking(SENTENCE).size)
            assertThrows(AmpouleException.FetchBundle::class.java) { Extractor.openBlocking(path.path, one) }
        }
    }

    @Test
    fun `no exception holds the text`(): Unit = runBlocking {
        val text = "$CANARY $SENTENCE\n".repeat(20_000)
        val token = CancelToken().apply { cancel() }
        val closed = Extractor.open(bundle, one).apply { close() }
        val said = StringWriter()
        var errors = 0
        for (fails in listOf<suspend () -> Unit>(
            { extractor.extractBlocking(text, timeout = 5.milliseconds) },
            { extractor.extractBlocking("$CANARY \uD800", token) },
            { withTimeout(5.milliseconds) { extractor.extract(text) } },
            { withTimeout(5.milliseconds) { extractor.entities(text).toList() } },
            { withTimeout(5.milliseconds) { extractor.extractAll(listOf(text, text)) } },
            { closed.extract(text) },
            { closed.entities(text).toList() },
        )) {
            try {
                fails()
            } catch (error: Throwable) {
                errors += 1
                // Coroutines may throw a copy whose cause is the original, to show where both were thrown.
                val cause = error.cause
                if (error is AmpouleException) assertTrue(cause == null || cause.javaClass == error.javaClass && cause.cause == null)
                error.printStackTrace(PrintWriter(said))
                said.append("$error ${error.message} ${error.localizedMessage}\n")
            }
        }
        assertEquals(7, errors)
        assertFalse(CANARY in said.toString())
        assertFalse(CANARY in "$extractor ${extractor.extract("$CANARY $SENTENCE")} ${extractor.report()}")
    }

    private fun child(vararg arguments: String, classes: String? = null): Triple<Int, String, String> {
        val java = File(System.getProperty("java.home"), "bin/java").path
        val path = listOfNotNull(classes, System.getProperty("java.class.path")).joinToString(File.pathSeparator)
        val command = listOf(java, "-cp", path, "-Dampoule.root=$root") + arguments
        // There, since the guide names a bundle without its folder.
        val process = ProcessBuilder(command).directory(File(root, "models")).start()
        val err = AtomicReference("")
        val reader = thread { err.set(process.errorStream.bufferedReader().readText()) }
        val out = process.inputStream.bufferedReader().readText()
        reader.join()
        return Triple(process.waitFor(), out, err.get())
    }

    @Test
    fun `the guide's lines run`() {
        val (code, out, err) = child("GuideKt")
        assertEquals(0 to "", code to err)
        assertEquals(
            listOf("Chemical lisinopril", "Disease hypertension", "Disease angioedema"),
            out.trim().lines().map { it.substringBeforeLast(' ') },
        )
    }

    @Test
    fun `nothing is printed`() {
        assertEquals(Triple(0, "", ""), child(Quiet::class.java.name))
    }

    private fun assertTold(loads: Triple<Int, String, String>) {
        val (code, out, err) = loads
        assertEquals(0 to "", code to err)
        val lines = out.trim().lines()
        assertEquals(2, lines.size, out)
        for (line in lines) assertTrue(line.startsWith("UpdateApp") && "package both from one release" in line, out)
    }

    @Test
    fun `a library that is not ours is told`() {
        assertTold(child("-Duniffi.component.ampoule_native.libraryOverride=c", Loads::class.java.name))
    }

    @Test
    fun `classes of another version are told`(@TempDir folder: File) {
        val source = File(root, "target/kotlin/uniffi/rs/ampoule/ffi/ampoule_native.kt").readText()
        val (sum) = Regex("""checksum_method_extractor_extract\(\) and 0xFFFF\) != (\d+)""").find(source)!!.destructured
        val name = "rs/ampoule/ffi/Ampoule_nativeKt.class"
        val bytes = javaClass.classLoader.getResourceAsStream(name)!!.use { it.readBytes() }
        // An integer of the class file, each byte as one character; no checksum has more than two bytes.
        fun constant(value: Int) = "\u0003" + String(ByteBuffer.allocate(4).putInt(value).array(), Charsets.ISO_8859_1)
        val parts = String(bytes, Charsets.ISO_8859_1).split(constant(sum.toInt()))
        assertEquals(2, parts.size)
        val changed = File(folder, name).apply { parentFile.mkdirs() }
        changed.writeBytes(parts.joinToString(constant(70_000)).toByteArray(Charsets.ISO_8859_1))
        assertTold(child(Loads::class.java.name, classes = folder.path))
    }
}

/** What an app does, with texts and errors, in a process of its own. */
internal object Quiet {
    @JvmStatic
    fun main(arguments: Array<String>) {
        Extractor.openBlocking(bundle, one).use { extractor ->
            for (text in listOf(CANARY, "$CANARY \uD800", "", "$CANARY ".repeat(10_000))) {
                extractor.extractBlocking(text)
                runCatching { extractor.extractBlocking(text, timeout = Duration.ZERO) }
                runBlocking {
                    val job = launch(Dispatchers.Default) { extractor.entities(text).toList() }
                    yield()
                    job.cancelAndJoin()
                }
            }
        }
    }
}

/** Opens a model where the library and its classes do not match, twice, since the JVM has another error the second time. */
internal object Loads {
    @JvmStatic
    fun main(arguments: Array<String>) {
        repeat(2) {
            try {
                Extractor.openBlocking(bundle, one)
            } catch (error: AmpouleException) {
                println("${error.javaClass.simpleName}: ${error.message}")
            }
        }
    }
}
