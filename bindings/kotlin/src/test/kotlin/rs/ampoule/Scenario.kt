package rs.ampoule

import com.google.gson.JsonObject
import com.google.gson.JsonParser
import java.io.File
import java.nio.file.Files
import kotlin.system.exitProcess
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue

/** `bindings/scenario.json`, which Rust and Python run too. By itself, too, for a jar that a shrinker has been over. */
internal object Scenario {
    private val tolerance = scenario["tolerance"].asDouble

    fun texts(): Unit = runBlocking {
        val extractor = Extractor.open(bundle)
        val classifier = Classifier.open(labelsBundle)
        val embedder = Embedder.open(bundle)
        assertEquals(scenario["labels"].asJsonObject["entities"].strings(), extractor.labels)
        assertEquals(scenario["labels"].asJsonObject["labels"].strings(), classifier.labels)
        assertEquals(scenario["width"].asInt, embedder.width)
        var compared = 0
        for (case in scenario["cases"].asJsonArray.map { it.asJsonObject }) {
            val (name, text) = case["name"].asString to case["text"].asString
            val found = extractor.extract(text)
            assertEntities(case["entities"].asJsonArray, found, tolerance, name)
            for (entity in found) {
                // Each unit cuts out the same piece.
                val piece = text.substring(entity.range)
                val bytes = text.toByteArray()
                assertEquals(piece, String(bytes.copyOfRange(entity.utf8.first, entity.utf8.last + 1)), name)
                val points = text.codePoints().toArray()
                assertEquals(piece, String(points, entity.codePoints.first, entity.codePoints.count()), name)
                compared += 1
            }
            if (case.has("labels")) {
                val expected = case["labels"].asJsonArray.map { it.asJsonObject }
                val scores = classifier.classify(text)
                assertEquals(expected.map { it["label"].asString }, scores.map { it.label }, name)
                for ((score, json) in scores zip expected) assertEquals(json["score"].asDouble, score.score.toDouble(), tolerance, name)
                val vector = embedder.embed(text)
                assertEquals(embedder.width, vector.size)
                for ((i, value) in case["vector"].asJsonArray.withIndex()) {
                    assertEquals(value.asDouble, vector[i].toDouble(), tolerance, name)
                }
            }
        }
        assertTrue(compared > 80)
        listOf(extractor, classifier, embedder).forEach(Model::close)
    }

    fun surrogates(): Unit = runBlocking {
        Extractor.open(bundle).use { extractor ->
            for (case in scenario["surrogates"].asJsonArray.map { it.asJsonObject }) {
                val text = String(case["units"].asJsonArray.map { it.asInt.toChar() }.toCharArray())
                val found = extractor.extract(text)
                assertEntities(case["entities"].asJsonArray, found, tolerance, case["name"].asString)
                assertEquals(found, extractor.entities(text).toList())
                assertEquals(found, extractor.extractBlocking(text))
                assertEquals(listOf(found), extractor.extractAll(listOf(text)))
            }
        }
        val strings = listOf("", "a", "😀", "a😀", "\uD83D", "\uDE00\uD83D", "\uD83D\uD83D\uDE00", "é\uD83Dx")
        val mended = listOf("", "a", "😀", "a😀", "\uFFFD", "\uFFFD\uFFFD", "\uFFFD😀", "é\uFFFDx")
        assertEquals(mended, strings.map { it.mended() })
    }

    fun errors(folder: File) {
        for (case in scenario["errors"].asJsonArray.map { it.asJsonObject }) {
            val name = case["name"].asString
            val path = prepared(case, folder)
            val options = OpenOptions(
                kernel = case["kernel"]?.asString,
                device = if (case["device"]?.asString == "gpu") Device.GPU else Device.CPU,
                minScoreByLabel = case["min_score_by_label"]?.asJsonObject?.asMap()?.mapValues { it.value.asFloat }.orEmpty(),
            )
            val error = assertThrows(AmpouleException::class.java, {
                when (case["model"].asString) {
                    "extractor" -> Extractor.openBlocking(path, options)
                    "classifier" -> Classifier.openBlocking(path, options)
                    else -> Embedder.openBlocking(path, options)
                }
            }, name)
            assertEquals(case["error"].asString, kind(error), name)
            assertTrue(error.message!!.length > 10, name)
        }
    }

    /** By type, since a shrinker renames classes. */
    private fun kind(error: AmpouleException) = when (error) {
        is AmpouleException.FetchBundle -> "FetchBundle"
        is AmpouleException.UpdateApp -> "UpdateApp"
        is AmpouleException.UseCpu -> "UseCpu"
        is AmpouleException.FixInput -> "FixInput"
        is AmpouleException.Cancelled -> "Cancelled"
        is AmpouleException.Closed -> "Closed"
        is AmpouleException.Internal -> "Internal"
    }

    private fun prepared(case: JsonObject, folder: File): String {
        val file = File(root, case["path"].asString)
        if (!case.has("bytes") && !case.has("replace")) return file.path
        var bytes = file.readBytes()
        case["bytes"]?.let { bytes = bytes.copyOf(it.asInt) }
        case["replace"]?.strings()?.let { (old, new) ->
            // Each byte as one character, so that the others stay what they are.
            bytes = String(bytes, Charsets.ISO_8859_1).replaceFirst(old, new).toByteArray(Charsets.ISO_8859_1)
        }
        return File(folder, "changed.safetensors").apply { writeBytes(bytes) }.path
    }

    fun sentences(file: File): Unit = runBlocking {
        val sentences = JsonParser.parseString(file.readText()).asJsonObject
        Extractor.open(File(root, sentences["bundle"].asString).path).use { extractor ->
            assertEquals(sentences["kernel"].asString, extractor.report().kernel)
            val cases = sentences["cases"].asJsonArray.map { it.asJsonObject }
            assertEquals(1000, cases.size)
            for (case in cases) {
                val text = case["text"].asString
                assertEntities(case["entities"].asJsonArray, extractor.extract(text), 0.0, text)
            }
        }
    }

    @JvmStatic
    fun main(arguments: Array<String>) {
        val folder = Files.createTempDirectory("scenario").toFile()
        val failures = listOf({ texts() }, { surrogates() }, { errors(folder) }).mapNotNull { runCatching(it).exceptionOrNull() }
        folder.deleteRecursively()
        failures.forEach { it.printStackTrace() }
        println("${3 - failures.size} passed, ${failures.size} failed")
        exitProcess(if (failures.isEmpty()) 0 else 1)
    }
}
