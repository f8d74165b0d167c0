package rs.ampoule

import java.io.File
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** The scenario, by JUnit. */
class ScenarioTest {
    @Test
    fun `texts have what the file says`() = Scenario.texts()

    @Test
    fun `surrogates without partners count as one unit`() = Scenario.surrogates()

    @Test
    fun `errors are those of the file`(@TempDir folder: File) = Scenario.errors(folder)

    @Test
    fun `a thousand sentences are Rust's to the last bit`() {
        val file = File(root, "target/tmp/sentences.json")
        assumeTrue(file.exists(), "$file is not there; cargo test --release --workspace --test scenario leaves it")
        Scenario.sentences(file)
    }
}
