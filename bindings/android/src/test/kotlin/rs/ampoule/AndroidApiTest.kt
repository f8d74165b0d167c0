package rs.ampoule

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Test

/** What apps see of Android's part. */
class AndroidApiTest {
    @Test
    fun `the public API is the committed one`() {
        val root = File(System.getProperty("ampoule.root"))
        val api = publicApi(File(root, "target/kotlin/android/maven/classes")) { it.name.startsWith("Asset") || it.name.startsWith("AmpouleAssets") }
        assertEquals("if that is meant: AMPOULE_WRITE=1 scripts/kotlin.sh", committedApi(File(root, "bindings/android/api/android.api"), api), api)
    }
}
