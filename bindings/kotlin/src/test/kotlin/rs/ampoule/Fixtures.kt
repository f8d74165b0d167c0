package rs.ampoule

import com.google.gson.JsonArray
import com.google.gson.JsonElement
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import java.io.File
import kotlin.math.abs
import kotlin.time.Duration
import kotlin.time.Duration.Companion.seconds
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue

internal val root = File(System.getProperty("ampoule.root")).canonicalFile
internal val scenario: JsonObject = JsonParser.parseString(File(root, "bindings/scenario.json").readText()).asJsonObject
internal val bundle: String = File(root, scenario["bundles"].asJsonObject["entities"].asString).path
internal val labelsBundle: String = File(root, scenario["bundles"].asJsonObject["labels"].asString).path

internal const val SENTENCE = "Started on lisinopril for hypertension; developed angioedema."
/** Of three megabytes, without any entity. */
internal val NOTHING = "No known allergies. ".repeat(150_000)
internal const val CANARY = "zyxquell"

internal val one = OpenOptions(threads = 1)

internal fun longText(): String {
    val long = scenario["long"].asJsonObject
    val sentence = long["sentence"].asString
    return sentence.repeat(long["bytes"].asInt / sentence.length)
}

internal fun JsonElement.strings(): List<String> = asJsonArray.map { it.asString }

private fun JsonElement.range(): IntRange = asJsonArray[0].asInt until asJsonArray[1].asInt

internal fun assertEntities(expected: JsonArray, found: List<Entity>, tolerance: Double, name: String) {
    assertEquals(expected.size(), found.size, name)
    for ((entity, json) in found zip expected.map { it.asJsonObject }) {
        assertEquals(json["label"].asString, entity.label, name)
        assertEquals(json["utf16"].range(), entity.range, name)
        assertEquals(json["utf8"].range(), entity.utf8, name)
        assertEquals(json["scalars"].range(), entity.codePoints, name)
        assertTrue(abs(json["score"].asDouble - entity.score) <= tolerance, name)
    }
}

/** Waits for what another thread does. */
internal fun until(what: String, within: Duration = 20.seconds, condition: () -> Boolean) {
    val end = System.nanoTime() + within.inWholeNanoseconds
    while (!condition()) {
        check(System.nanoTime() < end) { "$what: not within $within" }
        Thread.sleep(1)
    }
}
