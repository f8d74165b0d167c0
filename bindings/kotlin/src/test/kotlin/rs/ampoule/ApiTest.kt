package rs.ampoule

import java.io.File
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** What apps see: its names, which a committed file holds, its documents, and the licences that come with it. */
class ApiTest {
    @Test
    fun `the public API is the committed one`() {
        val api = publicApi(File(root, "target/kotlin/maven/classes"))
        assertEquals(committedApi(File(root, "bindings/kotlin/api/ampoule.api"), api), api, "if that is meant: AMPOULE_WRITE=1 scripts/kotlin.sh")
    }

    /** Each public declaration in the sources has a KDoc comment before it; what is overridden has that of what it overrides. */
    @Test
    fun `all that is public is documented`() {
        var documented = 0
        val bare = listOf("kotlin", "android").flatMap { File(root, "bindings/$it/src/main/kotlin").walk().filter(File::isFile) }.flatMap { file ->
            val lines = file.readLines()
            lines.indices.filter { at ->
                val line = lines[at]
                val isPublic = line.trimStart().startsWith("public ") && "override" !in line && "companion object" !in line
                val isParameter = Regex("""^ {4,8}val \w+: .*,$""").matches(line)
                if (!isPublic && !isParameter) return@filter false
                val before = lines.subList(0, at).last { !it.trimStart().startsWith("@") }.trim()
                before.endsWith("*/").also { if (it) documented += 1 }.not()
            }.map { "${file.name}:${it + 1}: ${lines[it].trim()}" }
        }
        assertEquals(emptyList<String>(), bare)
        assertTrue(documented > 80, "$documented")
    }

    /** In a folder of their own, since Android's packager refuses two files of one name. */
    @Test
    fun `licences come with the classes`() {
        fun text(name: String) = javaClass.classLoader.getResource("META-INF/ampoule/$name")!!.readText()
        for (name in listOf("LICENSE-MIT", "LICENSE-APACHE", "NOTICE")) assertEquals(File(root, name).readText(), text(name))
        for (crate in listOf("uniffi ", "tokenizers ", "rayon ", "memmap2 ")) assertTrue(crate in text("THIRD-PARTY.txt"), crate)
    }
}
