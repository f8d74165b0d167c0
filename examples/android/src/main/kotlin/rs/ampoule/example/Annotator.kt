package rs.ampoule.example

import java.io.File
import kotlin.time.Duration
import kotlin.time.TimeSource
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.launch
import rs.ampoule.AmpouleException
import rs.ampoule.Entity

/** What there is to show of the note. */
sealed interface Marks {
    /** Being computed. */
    data object Computing : Marks

    /** The entities of [text], which is kept to tell whether it is the note still. */
    class Found(val text: String, val entities: List<Entity>, val took: Duration) : Marks

    /** What went wrong; it never holds any of the note. */
    class Failed(val message: String) : Marks
}

/** Marks a note while it is typed: each change ends what is computed for the text before it. */
class Annotator(private val scope: CoroutineScope, private val extract: suspend (String) -> List<Entity>) {
    private val shown = MutableStateFlow<Marks>(Marks.Found("", emptyList(), Duration.ZERO))
    private var job: Job? = null

    val marks: StateFlow<Marks> = shown.asStateFlow()

    /** The note is now [text]. To be called from one thread, as views do. */
    fun typed(text: String) {
        job?.cancel()
        shown.value = Marks.Computing
        job = scope.launch {
            val start = TimeSource.Monotonic.markNow()
            shown.value = try {
                val entities = extract(text)
                Marks.Found(text, entities, start.elapsedNow())
            } catch (error: AmpouleException) {
                Marks.Failed(error.message.orEmpty())
            }
        }
    }
}

/** Megabytes of this process that are in memory, mapped files included. */
fun residentMegabytes(): Long {
    val line = File("/proc/self/status").useLines { lines -> lines.first { it.startsWith("VmRSS:") } }
    return line.filter(Char::isDigit).toLong() / 1024
}
