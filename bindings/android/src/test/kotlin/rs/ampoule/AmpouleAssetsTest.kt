package rs.ampoule

import android.content.Context
import java.io.File
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config

private const val STORED = "clinical-en.int8.safetensors"
private const val COMPRESSED = "compressed.bundle"
private const val TEXT = "Started on lisinopril for hypertension; developed angioedema."

/** Assets of a package that `aapt` made, by Android's own classes: the first bundle is stored as it is, the other one compressed. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [26])
class AmpouleAssetsTest {
    private val context: Context = RuntimeEnvironment.getApplication()
    private val options = OpenOptions(threads = 1, load = Load.MAP, verify = true)

    private fun pieces(model: Extractor) = model.extractBlocking(TEXT).map { TEXT.substring(it.range) }

    /** Mapped files of this process, without their addresses. */
    private fun mapped() = File("/proc/self/maps").readLines().map { it.substringAfterLast(' ') }.filter { it.startsWith("/") }.toSet()

    @Test
    fun `a stored bundle is mapped where it lies`(): Unit = runBlocking {
        val (model, place) = AmpouleAssets.extractor(context, STORED, options)
        assertEquals(AssetPlace.InApk, place)
        assertEquals(listOf("lisinopril", "hypertension", "angioedema"), pieces(model))
        assertTrue(mapped().toString(), mapped().any { it.endsWith(".apk") })
        assertFalse(File(context.noBackupFilesDir, "ampoule").exists())
        model.close()
    }

    @Test
    fun `a compressed bundle is copied once for each installation`(): Unit = runBlocking {
        val copies = List(2) {
            AmpouleAssets.extractor(context, COMPRESSED, options).use { asset ->
                assertEquals(3, pieces(asset.model).size)
                (asset.place as AssetPlace.Copied).file
            }
        }
        assertEquals(copies[0], copies[1])
        val written = copies[0].lastModified()
        assertTrue(copies[0].startsWith(context.noBackupFilesDir))
        assertEquals(File(System.getProperty("ampoule.root"), "models/$STORED").length(), copies[0].length())
        // The app is updated.
        val update = shadowOf(context.packageManager).getInternalMutablePackageInfo(context.packageName)
        update.lastUpdateTime += 1_000
        val (model, place) = AmpouleAssets.extractor(context, COMPRESSED, options)
        val newer = (place as AssetPlace.Copied).file
        assertFalse(newer == copies[0] || copies[0].exists())
        assertTrue(newer.lastModified() >= written)
        assertEquals(3, pieces(model).size)
        model.close()
    }

    @Test
    fun `every kind of model opens, and closes with its asset`(): Unit = runBlocking {
        val before = Ampoule.liveObjects()
        AmpouleAssets.embedder(context, STORED, options).use { assertEquals(it.model.width, it.model.embed(TEXT).size) }
        AmpouleAssets.classifier(context, "labels.safetensors", options).use { assertTrue(it.model.classify(TEXT).isNotEmpty()) }
        val asset = AmpouleAssets.extractor(context, STORED, options)
        asset.close()
        assertThrows(AmpouleException.Closed::class.java) { asset.model.extractBlocking(TEXT) }
        assertEquals(before, Ampoule.liveObjects())
    }

    @Test
    fun `what is not there, damaged, or of another task is told`() {
        fun fails(name: String) = assertThrows(AmpouleException::class.java) {
            runBlocking { AmpouleAssets.classifier(context, name, options) }
        }
        val missing = fails("no-such.safetensors")
        assertTrue("$missing", missing is AmpouleException.FetchBundle && "no-such.safetensors" in missing.message!!)
        assertTrue(fails("cut.safetensors") is AmpouleException.FetchBundle)
        assertTrue(fails(STORED) is AmpouleException.UpdateApp)
        assertTrue(fails(COMPRESSED) is AmpouleException.UpdateApp)
    }
}
