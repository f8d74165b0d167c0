package rs.ampoule.example

import android.content.ComponentCallbacks2
import android.content.pm.PackageManager
import android.content.res.Configuration
import android.os.Looper
import android.view.WindowManager
import android.widget.EditText
import android.widget.TextView
import java.util.concurrent.TimeUnit
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import rs.ampoule.Ampoule

private const val NOTE = "Started on lisinopril for hypertension; developed angioedema."

/** The sample's screen, of the package that `aapt` made of it. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [26])
class NoteActivityTest {
    private fun until(what: String, holds: () -> Boolean) {
        val end = System.nanoTime() + TimeUnit.SECONDS.toNanos(20)
        while (!holds()) {
            assertTrue(what, System.nanoTime() < end)
            shadowOf(Looper.getMainLooper()).idle()
            Thread.sleep(2)
        }
    }

    private fun pieces(note: EditText) = note.text.getSpans(0, note.text.length, Underline::class.java)
        .map { note.text.substring(note.text.getSpanStart(it), note.text.getSpanEnd(it)) }

    @Test
    fun `entities are marked as one types, said, and measured`() {
        val before = Ampoule.liveObjects()
        val controller = Robolectric.buildActivity(NoteActivity::class.java).setup()
        val activity = controller.get()
        val note = activity.findViewById<EditText>(R.id.note)
        val found = activity.findViewById<TextView>(R.id.found)
        val figures = activity.findViewById<TextView>(R.id.figures)
        until("the model is open") { found.text.toString() == "No entity" }
        for (end in 1..NOTE.length) {
            note.setText(NOTE.take(end))
            shadowOf(Looper.getMainLooper()).idle()
        }
        until("three are marked") { pieces(note).size == 3 }
        assertEquals(listOf("lisinopril", "hypertension", "angioedema"), pieces(note).sortedBy(NOTE::indexOf))
        assertEquals("Chemical: lisinopril\nDisease: hypertension\nDisease: angioedema", found.text.toString())
        assertTrue(Regex("""\d+ ms · \d+ MB in this process · bundle mapped in the APK""").matches(figures.text))
        assertEquals("Entities found: ${found.text}", found.contentDescription)
        assertEquals("Time and memory: ${figures.text}", figures.contentDescription)
        assertEquals(R.id.note, activity.findViewById<TextView>(R.id.label).labelFor)
        note.setText("")
        until("none is marked") { found.text.toString() == "No entity" }
        assertEquals(0, pieces(note).size)
        activity.onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_UI_HIDDEN)
        controller.pause().stop().destroy()
        until("the model is closed") { Ampoule.liveObjects() == before }
    }

    @Test
    fun `text grows with the reader's scale`() {
        fun height(scale: Float): Float {
            val configuration = Configuration(RuntimeEnvironment.getApplication().resources.configuration).apply { fontScale = scale }
            RuntimeEnvironment.setFontScale(configuration.fontScale)
            val controller = Robolectric.buildActivity(NoteActivity::class.java).setup()
            return controller.get().findViewById<EditText>(R.id.note).textSize.also { controller.pause().stop().destroy() }
        }
        assertEquals(2f, height(2f) / height(1f), 0.01f)
    }

    @Test
    fun `the app asks for nothing, and a note is kept nowhere`() {
        val context = RuntimeEnvironment.getApplication()
        val info = context.packageManager.getPackageInfo(context.packageName, PackageManager.GET_PERMISSIONS)
        assertNull(info.requestedPermissions?.toList())
        val controller = Robolectric.buildActivity(NoteActivity::class.java).setup()
        assertTrue(controller.get().window.attributes.flags and WindowManager.LayoutParams.FLAG_SECURE != 0)
        controller.get().findViewById<EditText>(R.id.note).setText("zyxquell")
        val state = android.os.Bundle()
        controller.saveInstanceState(state)
        assertFalse("zyxquell" in state.toString())
        controller.pause().stop().destroy()
    }
}
