package rs.ampoule

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.Test

/** With a library that computes on GPUs, on whatever GPU there is; with the other, that it says so. */
class GpuTest {
    private val isThere = !System.getenv("AMPOULE_GPU").isNullOrEmpty()
    private val any = OpenOptions(device = Device.GPU_OR_CPU, adapter = "", gpuFromTokens = 1, threads = 1)

    @Test
    fun `a library without GPUs says so, and the processor computes`() {
        assumeTrue(!isThere, "this library has GPUs")
        val error = assertThrows(AmpouleException.UseCpu::class.java) { Extractor.openBlocking(bundle, OpenOptions(device = Device.GPU)) }
        assertTrue("without GPU support" in error.message.orEmpty(), error.message)
        Extractor.openBlocking(bundle, any).use { extractor ->
            assertNull(runBlocking { extractor.warmUp() })
            assertNull(extractor.report().gpu)
            assertEquals(3, extractor.extractBlocking(SENTENCE).size)
        }
    }

    @Test
    fun `a GPU warms up while the processor computes, and then computes the same`(): Unit = runBlocking {
        assumeTrue(isThere, "this library has no GPU")
        Extractor.open(bundle, any).use { extractor ->
            val heard = mutableListOf<GpuReport>()
            val warmed = async(start = CoroutineStart.UNDISPATCHED) { extractor.warmUp { heard += it } }
            val expected = extractor.extract(SENTENCE).map { it.label to it.range }
            assertEquals(3, expected.size)
            val tokens = extractor.computed.run { cpuTokens + gpuTokens }
            val report = warmed.await()!!
            assertEquals(GpuState.READY, report.state, report.reason)
            assertEquals(listOf("f32", report.warmUpOf, 1), listOf(report.precision, report.warmUpDone, report.fromTokens))
            val check = report.check!!
            assertTrue(check.cases > 0 && check.largestDifference <= check.allowed, check.toString())
            assertTrue(heard.size > 1 && heard.dropLast(1).all { it.state == GpuState.WARMING && it.warmUpOf == report.warmUpOf })
            assertEquals(report, heard.last())
            assertEquals(heard.map { it.warmUpDone }.sorted(), heard.map { it.warmUpDone })
            val call = extractor.counted()
            assertEquals(expected, call.extract(SENTENCE).map { it.label to it.range })
            assertEquals(Computed(cpuTokens = 0, gpuTokens = tokens), call.computed)
            val gpu = extractor.report().gpu!!
            assertTrue(gpu.computedTokens > 10 && gpu.unverifiedBatches > 0, gpu.toString())
        }
    }

    @Test
    fun `who waits for a GPU can stop, and the model computes on`(): Unit = runBlocking {
        assumeTrue(isThere, "this library has no GPU")
        Extractor.open(bundle, any).use { extractor ->
            var ended: Throwable? = null
            val waiting = launch(start = CoroutineStart.UNDISPATCHED) {
                try {
                    extractor.warmUp()
                } catch (error: Throwable) {
                    ended = error
                    throw error
                }
            }
            waiting.cancelAndJoin()
            assertTrue(ended is CancellationException, ended.toString())
            assertEquals(GpuState.WARMING, extractor.report().gpu?.state)
            assertEquals(0, extractor.report().runningCalls)
            assertEquals(3, extractor.extract(SENTENCE).size)
        }
        assertThrows(AmpouleException.UseCpu::class.java) {
            Extractor.openBlocking(bundle, OpenOptions(device = Device.GPU, adapter = "no such adapter"))
        }
    }
}
