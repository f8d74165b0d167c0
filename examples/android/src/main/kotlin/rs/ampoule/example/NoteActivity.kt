package rs.ampoule.example

import android.app.Activity
import android.content.ComponentCallbacks2
import android.graphics.Color
import android.os.Bundle
import android.text.Editable
import android.text.Spanned
import android.text.TextWatcher
import android.text.style.BackgroundColorSpan
import android.text.style.UnderlineSpan
import android.view.WindowManager
import android.widget.EditText
import android.widget.TextView
import java.io.IOException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch
import rs.ampoule.AmpouleAssets
import rs.ampoule.AmpouleException
import rs.ampoule.AssetModel
import rs.ampoule.AssetPlace
import rs.ampoule.Entity
import rs.ampoule.Extractor

/** One screen: a note, its entities marked as one types, and what that takes. */
class NoteActivity : Activity() {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Main.immediate)
    private var asset: AssetModel<Extractor>? = null
    private lateinit var note: EditText
    private lateinit var found: TextView
    private lateinit var figures: TextView

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        // Else the list of recent apps keeps a picture of the note.
        window.addFlags(WindowManager.LayoutParams.FLAG_SECURE)
        setContentView(R.layout.note)
        note = findViewById(R.id.note)
        found = findViewById(R.id.found)
        figures = findViewById(R.id.figures)
        found.contentDescription = getString(R.string.opening)
        figures.contentDescription = getString(R.string.figures)
        found.text = getString(R.string.opening)
        scope.launch {
            try {
                asset = AmpouleAssets.extractor(this@NoteActivity, BUNDLE).also { start(it) }
            } catch (error: AmpouleException) {
                say(error.message.orEmpty())
            } catch (error: IOException) {
                say(error.message.orEmpty())
            }
        }
    }

    private fun start(asset: AssetModel<Extractor>) {
        val annotator = Annotator(scope, asset.model::extract)
        note.addTextChangedListener(object : TextWatcher {
            override fun beforeTextChanged(text: CharSequence, start: Int, count: Int, after: Int) = Unit

            override fun onTextChanged(text: CharSequence, start: Int, before: Int, count: Int) = Unit

            override fun afterTextChanged(text: Editable) = annotator.typed(text.toString())
        })
        scope.launch { annotator.marks.collect { show(it, asset.place) } }
        annotator.typed(note.text.toString())
    }

    private fun show(marks: Marks, place: AssetPlace) = when (marks) {
        Marks.Computing -> figures.text = getString(R.string.computing)
        is Marks.Failed -> say(marks.message)
        is Marks.Found -> if (marks.text == note.text.toString()) {
            mark(note.text, marks.entities)
            val lines = marks.entities.map { getString(R.string.entity, it.label, marks.text.substring(it.range)) }
            say(lines.joinToString("\n").ifEmpty { getString(R.string.nothing) })
            val where = getString(if (place is AssetPlace.InApk) R.string.in_apk else R.string.copied)
            figures.text = getString(R.string.measured, marks.took.inWholeMilliseconds, residentMegabytes(), where)
            figures.contentDescription = "${getString(R.string.figures)}: ${figures.text}"
        } else {
            Unit
        }
    }

    private fun say(text: String) {
        found.text = text
        found.contentDescription = "${getString(R.string.found)}: $text"
    }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        if (level >= ComponentCallbacks2.TRIM_MEMORY_UI_HIDDEN) asset?.model?.trim()
    }

    override fun onDestroy() {
        scope.cancel()
        asset?.close()
        super.onDestroy()
    }

    private companion object {
        const val BUNDLE = "clinical-en.int8.safetensors"
    }
}

/** Underlines entities, and shades them by label: colour alone would tell nothing to some. */
internal fun mark(text: Editable, entities: List<Entity>) {
    for (span in text.getSpans(0, text.length, Mark::class.java)) text.removeSpan(span)
    for (entity in entities) {
        val (start, end) = entity.range.first to entity.range.last + 1
        text.setSpan(Underline(), start, end, Spanned.SPAN_EXCLUSIVE_EXCLUSIVE)
        text.setSpan(Shade(color(entity.label)), start, end, Spanned.SPAN_EXCLUSIVE_EXCLUSIVE)
    }
}

/** What was put there by us, and is taken away again. */
internal interface Mark

internal class Underline : UnderlineSpan(), Mark

internal class Shade(color: Int) : BackgroundColorSpan(color), Mark

/** A pale colour of the label's own, on which black is read well. */
private fun color(label: String): Int = Color.HSVToColor(floatArrayOf(Math.floorMod(label.hashCode(), 360).toFloat(), 0.25f, 1f))
