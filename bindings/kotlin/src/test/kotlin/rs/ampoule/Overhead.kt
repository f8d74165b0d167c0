package rs.ampoule

import java.io.File
import kotlin.system.exitProcess
import kotlinx.coroutines.runBlocking

/**
 * What a call of 128 tokens costs on the JVM beside Rust, blocks of both in turn; its argument is `bindings/examples/clock.rs`, built.
 * Prints microseconds, medians over blocks of medians, and what the least block of each side makes of it, which what else runs on the machine
 * disturbs less. Exits with 1 where a blocking call costs [LIMIT] percent more than Rust's in the least, or twice that in the median.
 */
internal object Overhead {
    private const val CALLS = 30
    private const val BLOCKS = 101
    private const val LIMIT = 5.0

    /** Of a corpus, as many words as make 128 tokens, the two special ones counted; one more would be a second window. */
    private fun text(model: Extractor): Pair<String, Long> {
        val words = File(root, "examples/produce/data/bc5cdr/test.tsv").readLines().filter(String::isNotEmpty).map { it.substringBefore('\t') }
        var fits = "" to 0L
        for (n in 1..words.size) {
            val text = words.take(n).joinToString(" ")
            val before = model.report().computedTokens
            model.extractBlocking(text)
            val tokens = model.report().computedTokens - before
            if (tokens > 128) break
            fits = text to tokens
        }
        return fits
    }

    private fun List<Double>.median() = sorted()[size / 2]

    private inline fun medianOf(call: () -> Unit): Double = List(CALLS) {
        val start = System.nanoTime()
        call()
        (System.nanoTime() - start) / 1e3
    }.median()

    @JvmStatic
    fun main(arguments: Array<String>) {
        val start = System.nanoTime()
        var isSound = false
        Extractor.openBlocking(bundle, one).use { model ->
            model.extractBlocking("Started on lisinopril.")
            println("open to first entity: %.1f ms".format((System.nanoTime() - start) / 1e6))
            val (text, tokens) = text(model)
            val rust = ProcessBuilder(arguments[0], bundle, text).start()
            val (input, output) = rust.outputStream.bufferedWriter() to rust.inputStream.bufferedReader()
            fun there(): Double {
                input.write("$CALLS\n")
                input.flush()
                return output.readLine().toDouble()
            }
            runBlocking {
                // The JVM compiles what is called often.
                repeat(600) { model.extract(text) }
                repeat(600) { model.extractBlocking(text) }
                val rows = List(BLOCKS) {
                    listOf(there(), medianOf { model.extractBlocking(text) }, medianOf { model.extract(text) })
                }
                val (isCheap, _) = listOf(1 to "blocking", 2 to "suspending").map { (i, name) ->
                    val more = 100 * (rows.map { it[i] / it[0] }.median() - 1)
                    val least = 100 * (rows.minOf { it[i] } / rows.minOf { it[0] } - 1)
                    println(
                        "%d tokens: Rust %.0f us, Kotlin, %s %.0f us, %+.1f %% (least %+.1f %%)"
                            .format(tokens, rows.map { it[0] }.median(), name, rows.map { it[i] }.median(), more, least),
                    )
                    least < LIMIT && more < 2 * LIMIT
                }
                isSound = isCheap
                println("${if (isSound) "ok" else "FAILED"}: the blocking call within $LIMIT % of Rust's")
            }
            input.close()
        }
        exitProcess(if (isSound) 0 else 1)
    }
}
