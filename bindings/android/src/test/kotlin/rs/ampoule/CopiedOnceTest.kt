package rs.ampoule

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import java.util.concurrent.atomic.AtomicInteger
import kotlin.concurrent.thread
import kotlinx.coroutines.CancellationException
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** A copy that is killed, has no room, is cancelled, is wanted by many at once, or is of an older app. */
class CopiedOnceTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val bytes = ByteArray(3_000_001) { (it * 31 / 7).toByte() }
    private val folder by lazy { File(temporary.root, "no/such/folder/yet") }

    private fun copied(version: String, open: () -> InputStream) = copiedOnce(folder, version, {}, open)

    private fun files() = folder.list()!!.toSet() - "lock"

    @Test
    fun `it is copied once for each version`() {
        val opened = AtomicInteger()
        val open = { opened.incrementAndGet(); bytes.inputStream() }
        val first = copied("1", open)
        assertArrayEquals(bytes, first.readBytes())
        assertEquals(first, copied("1", open))
        assertEquals(1, opened.get())
        first.inputStream().use { held ->
            val second = copied("2") { byteArrayOf(7).inputStream() }
            assertArrayEquals(byteArrayOf(7), second.readBytes())
            assertEquals(setOf("2.safetensors"), files())
            // What is open stays whole.
            assertArrayEquals(bytes, held.readBytes())
        }
    }

    @Test
    fun `an error or a cancelled coroutine leaves nothing, and the next one copies`() {
        val broken = object : InputStream() {
            private var left = 200_000
            override fun read(): Int = if (left-- > 0) 1 else throw IOException("of the asset")
        }
        assertEquals("of the asset", assertThrows(IOException::class.java) { copied("1") { broken } }.message)
        assertEquals(emptySet<String>(), files())
        var pieces = 0
        assertThrows(CancellationException::class.java) {
            copiedOnce(folder, "1", { if (++pieces == 5) throw CancellationException() }) { bytes.inputStream() }
        }
        assertEquals(emptySet<String>(), files())
        assertArrayEquals(bytes, copied("1") { bytes.inputStream() }.readBytes())
    }

    private fun child(prefix: String, vararg arguments: String): Process {
        val java = File(System.getProperty("java.home"), "bin/java").path
        val command = (listOf(java, "-cp", System.getProperty("java.class.path"), Copies::class.java.name) + arguments)
            .joinToString(" ") { "'$it'" }
        return ProcessBuilder("bash", "-c", "$prefix exec $command").redirectErrorStream(true).start()
    }

    @Test
    fun `a copy that is killed in its middle is made anew`() {
        val process = child("", folder.path, "slowly")
        assertEquals("begun", process.inputStream.bufferedReader().readLine())
        assertTrue(File(folder, "part").length() > 0)
        process.destroyForcibly().waitFor()
        assertEquals(setOf("part"), files())
        assertArrayEquals(bytes, copied("1") { bytes.inputStream() }.readBytes())
        assertEquals(setOf("1.safetensors"), files())
    }

    @Test
    fun `where there is no room it is an error that leaves nothing`() {
        // The system lets this process write so many blocks of 1 KB to a file, as a full disk does.
        val process = child("trap '' XFSZ; ulimit -f 1000;", folder.path, "at once")
        val said = process.inputStream.bufferedReader().readText()
        assertEquals(said, 0, process.waitFor())
        assertTrue(said, said.startsWith("IOException"))
        assertEquals(emptySet<String>(), files())
    }

    @Test
    fun `of many at once one copies`() {
        val opened = AtomicInteger()
        val start = CountDownLatch(1)
        val found = java.util.concurrent.ConcurrentLinkedQueue<List<Byte>>()
        val threads = List(8) {
            thread {
                start.await()
                found += copied("1") { opened.incrementAndGet(); bytes.inputStream() }.readBytes().toList()
            }
        }
        start.countDown()
        threads.forEach { it.join() }
        assertEquals(List(8) { bytes.toList() }, found.toList())
        assertEquals(1, opened.get())
    }

    @Test
    fun `another process waits for the one that copies`() {
        val process = child("", folder.path, "slowly")
        val lines = process.inputStream.bufferedReader()
        assertEquals("begun", lines.readLine())
        val waits = thread { copied("1") { throw AssertionError("copied twice") } }
        Thread.sleep(200)
        assertTrue(waits.isAlive)
        assertFalse(File(folder, "1.safetensors").exists())
        process.outputStream.use { it.write('\n'.code) }
        assertTrue(process.waitFor(20, TimeUnit.SECONDS))
        waits.join()
        assertEquals(Copies.SIZE.toLong(), File(folder, "1.safetensors").length())
    }
}

/** Copies in a process of its own; slowly: stops in the middle, says so, and goes on when it is told. */
internal object Copies {
    const val SIZE = 2_000_000

    @JvmStatic
    fun main(arguments: Array<String>) {
        var pieces = 0
        val proceed = {
            if (arguments[1] == "slowly" && ++pieces == 10) {
                println("begun")
                System.`in`.read()
            }
        }
        try {
            copiedOnce(File(arguments[0]), "1", proceed) { ByteArray(SIZE).inputStream() }
        } catch (error: IOException) {
            println("${error.javaClass.simpleName}: ${error.message}")
        }
    }
}
